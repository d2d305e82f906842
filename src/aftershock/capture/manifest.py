"""What a bundle says of itself: the schema of `manifest.json`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from aftershock.capture.entries import Engine, Entry, Logits, Record, Request, Stored, Weight

FORMAT: Literal["aftershock-bundle"] = "aftershock-bundle"

BUNDLE_VERSION = 2


class Manifest(Entry):
    """A whole bundle: what ran, on what, and what it gave.

    `records` are in the order in which the calls ended, `passes` the numbers of the tokens of each pass. `rows` are
    the lists that spans name. A bundle that is not `complete` ends where its engine failed.
    """

    format: Literal["aftershock-bundle"] = FORMAT
    version: int = Field(default=BUNDLE_VERSION, ge=1)
    engine: Engine
    model: str
    dtype: str
    settings: dict[str, Any] = Field(default_factory=dict)
    complete: bool = True
    requests: tuple[Request, ...] = Field(min_length=1)
    rows: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    passes: tuple[tuple[int, ...], ...] = ()
    records: tuple[Record, ...]
    logits: Logits | None = None
    weights: tuple[Weight, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens of all requests."""
        return sum(len(request.tokens) for request in self.requests)

    @property
    def starts(self) -> tuple[int, ...]:
        """Number of the first token of each request among all tokens."""
        return tuple(accumulate((len(request.tokens) for request in self.requests[:-1]), initial=0))

    @property
    def stored(self) -> tuple[Stored, ...]:
        """Every tensor, once, in the order of the records."""
        return tuple(dict.fromkeys(tensor for tensor, _ in self._spans()))

    def tokens_of(self, span: str) -> Sequence[int]:
        """Numbers of the tokens that the rows of a tensor with this span are, ascending.

        Raises ValueError for a span that is no list of the manifest.
        """
        if span == "all":
            return range(self.tokens)
        if span == "last":
            return [start + len(request.tokens) - 1 for start, request in zip(self.starts, self.requests, strict=True)]
        if span not in self.rows:
            raise ValueError(f'span "{span}" is neither "all" nor "last" nor a list of rows')
        return self.rows[span]

    def _spans(self) -> Iterator[tuple[Stored, str]]:
        for record in self.records:
            yield record.output, record.span
            if record.input is not None:
                yield record.input, record.span
        if self.logits is not None:
            yield self.logits.stored, self.logits.span

    @model_validator(mode="after")
    def _rows_are_tokens(self) -> Self:
        for name, numbers in self.rows.items():
            if list(numbers) != sorted(set(numbers)) or not all(0 <= number < self.tokens for number in numbers):
                raise ValueError(f'rows "{name}" are not numbers of the {self.tokens} tokens, ascending')
        if not all(0 <= number < self.tokens for numbers in self.passes for number in numbers):
            raise ValueError(f"passes hold numbers of no token: there are {self.tokens}")
        return self

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Self:
        twice = [name for name, count in Counter(record.name for record in self.records).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} has several records: tell them apart by point and call")
        return self

    @model_validator(mode="after")
    def _every_token_has_a_row(self) -> Self:
        rows = {span: len(self.tokens_of(span)) for _, span in self._spans()}
        for tensor, span in self._spans():
            if not tensor.shape or tensor.shape[0] != rows[span]:
                raise ValueError(
                    f"{tensor.key} has shape {tensor.shape}, where the requests have {rows[span]} rows ({span} tokens)"
                )
        return self
