"""Items grouped once and for all, so that golden runs and trials have the same shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from aftershock.models import LoadedModel
from aftershock.numerics import generator
from aftershock.tasks import Item, Row, encode


@dataclass(frozen=True)
class Batch:
    """Items of one kind that always run together, and their token rows.

    `sequences` are the different (context, answer tokens fed) of each item: options that share both, such as single
    letters, share a sequence; items never do. `sequence_of[i][r]` is the sequence that carries row r of item i. The
    last token of a continuation is never fed, since nothing follows it.
    """

    number: int
    items: tuple[Item, ...]
    rows: tuple[tuple[Row, ...], ...]

    @property
    def generates(self) -> bool:
        """Whether the model writes the answers (else it is given them)."""
        return self.items[0].kind == "generation"

    @cached_property
    def sequences(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """(context, answer tokens fed) of every sequence, item after item."""
        return tuple(sequence for rows in self.rows for sequence in dict.fromkeys(map(_fed, rows)))

    @cached_property
    def sequence_of(self) -> tuple[tuple[int, ...], ...]:
        """Number of the sequence of each row of each item."""
        found, begin = [], 0
        for rows in self.rows:
            numbers = {sequence: begin + number for number, sequence in enumerate(dict.fromkeys(map(_fed, rows)))}
            found.append(tuple(numbers[_fed(row)] for row in rows))
            begin += len(numbers)
        return tuple(found)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """For every sequence the first one of its item with the same context, which the options of a question share."""
        first: dict[tuple[int, tuple[int, ...]], int] = {}
        item_of = [item for item, numbers in enumerate(self.sequence_of) for _ in dict.fromkeys(numbers)]
        return tuple(
            first.setdefault((item, context), number)
            for number, (item, (context, _)) in enumerate(zip(item_of, self.sequences, strict=True))
        )

    @property
    def decode_passes(self) -> int:
        """The most decode passes that an answer of this batch can have."""
        if self.generates:
            return max(item.max_new_tokens for item in self.items) - 1
        return max(len(answer) for _, answer in self.sequences)


def _fed(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return row.context, row.continuation[:-1]


def make_batches(items: Sequence[Item], model: LoadedModel, size: int, seed: int) -> tuple[Batch, ...]:
    """Items of each kind in an order drawn from `seed`, `size` at a time (the last batch of a kind has fewer)."""
    order = generator(seed, 0, "batches").permutation(len(items))
    by_kind: dict[str, list[Item]] = {}
    for number in order.tolist():
        by_kind.setdefault(items[number].kind, []).append(items[number])
    groups = [
        members[start : start + size]
        for _, members in sorted(by_kind.items())
        for start in range(0, len(members), size)
    ]
    return tuple(
        Batch(number, tuple(group), tuple(encode(item, model.tokenizer) for item in group))
        for number, group in enumerate(groups)
    )
