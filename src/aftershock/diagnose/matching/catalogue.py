"""The tensors of a target's bundle in call order, with the few rows of each that it is recognised by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from aftershock.capture import Bundle, Stored
from aftershock.diagnose.layouts import Grouping
from aftershock.diagnose.matching.columns import directions
from aftershock.diagnose.replay import Shown
from aftershock.diagnose.sources import LOGITS, Place, Source

ROWS = 32
"""Rows that a tensor is recognised by."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor: `places` are all that hold it, `number` is its place in call order, `tokens` are the numbers of the
    tokens that its rows are, int64, shape (rows,). `sample` has the rows `sampled`, fp32, shape (sampled, width), and
    `directions` its columns divided by their norms; `norm` is that of the whole tensor."""

    places: tuple[Place, ...]
    stored: Stored
    number: int
    width: int
    tokens: torch.Tensor
    sampled: torch.Tensor
    sample: torch.Tensor
    directions: torch.Tensor
    norm: float

    @property
    def place(self) -> Place:
        """The first place that holds it."""
        return self.places[0]

    @property
    def content(self) -> tuple[float, int, int]:
        """Equal for tensors that hold the same values, and by no likely chance for others."""
        return self.norm, self.width, len(self.tokens)

    def like(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of all tokens' values that correspond to `sample`, fp32, on the CPU as it is."""
        return values[self.tokens[self.sampled].to(values.device)].float().cpu()


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All tensors of a bundle by place."""

    bundle: Bundle
    values: tuple[Value, ...]
    by_place: Mapping[Place, Value]
    blocks: Mapping[Grouping, tuple[torch.Tensor, ...]]
    """The numbers of the tokens of each pass, of each request, and of all."""
    order: torch.Tensor | None
    """The token that each of the bundle's tokens is, where their order is not that of the requests."""

    def shown(self, source: Source) -> Shown:
        """The values of a source, whatever rows it has. Raises KeyError for a place that the bundle lacks."""
        values = [self.by_place[place] for place in source.places]
        read = [self.bundle.tensors[value.stored].flatten(1) for value in values]
        total = read[0] if len(read) == 1 else torch.stack([one.float() for one in read]).sum(0)
        tokens = values[0].tokens
        blocks: list[torch.Tensor] = []
        if source.layout.transposed is not None:
            blocks = [_rows_among(block, tokens) for block in self.blocks[source.layout.transposed.grouping]]
        laid = source.layout.of(total, blocks)
        every = self.order is None and len(tokens) == self.bundle.manifest.tokens
        return Shown(laid, None if every else tokens)

    def sample(self, source: Source) -> torch.Tensor:
        """The sampled rows of a source, fp32, shape (sampled, channels)."""
        if source.layout.transposed is not None:
            return self.shown(source).values[self.by_place[source.places[0]].sampled].float()
        total = torch.stack([self.by_place[place].sample for place in source.places]).sum(0)
        return source.layout.of(total, ())

    def has(self, source: Source) -> bool:
        """Whether a source's places are there, for the same tokens, and have its channels."""
        if not all(place in self.by_place for place in source.places):
            return False
        values = [self.by_place[place] for place in source.places]
        alike = {(value.width, tuple(value.tokens.tolist())) for value in values} if len(values) > 1 else {values[0]}
        return len(alike) == 1 and all(max(own[0], own[-1]) < values[0].width for own in source.layout.channels)

    def holds(self, source: Source, width: int) -> bool:
        """Whether a source is there with as many channels as wanted."""
        return self.has(source) and (source.layout.width or self.by_place[source.places[0]].width) == width


def catalogue(bundle: Bundle) -> Catalogue:
    """The catalogue of a bundle; each tensor is read once. Whole numbers are left out."""
    by_stored: dict[Stored, list[Place]] = {}
    spans: dict[Stored, str] = {}
    for place, stored, span in _tensors(bundle):
        by_stored.setdefault(stored, []).append(place)
        spans[stored] = span
    tokens = {
        span: torch.tensor(list(bundle.manifest.tokens_of(span)), dtype=torch.int64) for span in set(spans.values())
    }
    values = tuple(
        _value(tuple(places), stored, number, bundle.tensors[stored].flatten(1), tokens[spans[stored]])
        for number, (stored, places) in enumerate(by_stored.items())
    )
    by_place = {place: value for value in values for place in value.places}
    return Catalogue(bundle, values, by_place, _blocks(bundle), None)


def reordered(own: Catalogue, order: torch.Tensor) -> Catalogue:
    """The catalogue of a bundle whose token i is the requests' token `order[i]`."""
    values = tuple(replace(value, tokens=order[value.tokens]) for value in own.values)
    by_place = {place: value for value in values for place in value.places}
    blocks = {grouping: tuple(order[block] for block in found) for grouping, found in own.blocks.items()}
    return replace(own, values=values, by_place=by_place, blocks=blocks, order=order)


def _tensors(bundle: Bundle) -> Iterator[tuple[Place, Stored, str]]:
    for record in bundle.manifest.records:
        if record.input is not None and record.input.dtype != "I64":
            yield Place(record.name, "input"), record.input, record.span
        yield Place(record.name), record.output, record.span
    if bundle.manifest.logits is not None:
        yield Place(LOGITS), bundle.manifest.logits.stored, bundle.manifest.logits.span


def _value(places: tuple[Place, ...], stored: Stored, number: int, values: torch.Tensor, tokens: torch.Tensor) -> Value:
    count = len(tokens)
    sampled = torch.linspace(0, count - 1, min(ROWS, count)).round().long()
    # A norm by rows: a sum of squares over a large vocabulary is exact enough, and nothing is copied.
    norm = float(torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32).double().norm())
    sample = values[sampled].float()
    return Value(places, stored, number, values.shape[-1], tokens, sampled, sample, directions(sample), norm)


def _blocks(bundle: Bundle) -> dict[Grouping, tuple[torch.Tensor, ...]]:
    manifest = bundle.manifest
    every = torch.arange(manifest.tokens)
    requests = torch.tensor_split(every, manifest.starts[1:])
    passes = tuple(torch.tensor(numbers) for numbers in manifest.passes if numbers)
    return {"pass": passes, "request": requests, "all": (every,)}


def _rows_among(block: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.isin(tokens, block).nonzero()[:, 0]
