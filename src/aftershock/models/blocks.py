"""Token rows aligned by stage.

A block holds rows padded so that every stage is the same range of columns in each of them: contexts end at
the same column (padded on the left), answers begin after it (padded on the right). Cutting a run between two
stages is then a cut between two columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from aftershock.models.stages import FIRST_TOKEN, PREFILL, decode


@dataclass(frozen=True)
class Block:
    """Token rows of one fixed shape.

    `tokens` and `mask` have shape (rows, columns), int64; `mask` is 1 on real tokens. Contexts fill columns
    [context_width - context_lengths[r], context_width) of row r and its answer the columns after.

    Rows may share a context: its columns run in the row `owners[r]` alone, whose keys and values are row r's too.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    context_width: int
    context_lengths: tuple[int, ...]
    answer_lengths: tuple[int, ...]
    owners: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows, padding rows included."""
        return int(self.tokens.shape[0])

    @property
    def last_pass(self) -> int:
        """Number of the last pass that the block's columns hold."""
        return decode(int(self.tokens.shape[1]) - self.context_width)

    @property
    def positions(self) -> torch.Tensor:
        """Position ids, shape (rows, columns): 0 at each row's first real token."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    @cached_property
    def context_rows(self) -> tuple[int, ...]:
        """The rows that run in the columns of contexts."""
        return tuple(sorted(set(self.owners)))

    @property
    def shares_contexts(self) -> bool:
        """Whether some rows have their context from another one."""
        return len(self.context_rows) < self.rows

    def first_column(self, row: int) -> int:
        """Column of a row's first token."""
        return self.context_width - self.context_lengths[row]

    def runners(self, stop: int) -> tuple[int, ...]:
        """For each row the one that runs for it in a call that ends before column `stop`: itself, or the owner of its
        context."""
        return self.owners if stop <= self.context_width else tuple(range(self.rows))

    def start(self, number: int) -> int:
        """First column of a pass."""
        return 0 if number < FIRST_TOKEN else self.context_width - 2 + number

    def number(self, column: int) -> int:
        """Number of the pass that a column belongs to."""
        return max(PREFILL, column - self.context_width + 2)

    def copies(self, count: int) -> "Block":
        """The block with its rows `count` times over."""
        return Block(
            self.tokens.repeat(count, 1),
            self.mask.repeat(count, 1),
            self.context_width,
            self.context_lengths * count,
            self.answer_lengths * count,
            tuple(copy * self.rows + owner for copy in range(count) for owner in self.owners),
        )

    def own_columns(self, row: int, columns: range) -> range:
        """Those of some columns in which a row has a token, empty where it has none; columns past the block's own are
        generated ones."""
        generated = columns.stop > self.tokens.shape[1]
        end = columns.stop if generated else self.context_width + self.answer_lengths[row]
        return range(max(self.first_column(row), columns.start), min(end, columns.stop))

    def holds(self, row: int, columns: range) -> bool:
        """Whether a row has a token in any of the columns; those past the block's own are generated ones."""
        return len(self.own_columns(row, columns)) > 0


@dataclass(frozen=True)
class Pass:
    """One forward call: passes `first` to `last` (inclusive) at once, columns [start, stop) of `block`.

    The last `kept` columns are those that predict answer tokens. `active[r]` is False where row r's answer
    had ended before. `rows`, in order, are those that run.
    """

    block: Block
    first: int
    last: int
    start: int
    stop: int
    kept: int
    active: tuple[bool, ...]
    rows: tuple[int, ...]

    def without_padding(self) -> "Pass":
        """The call with those of its rows alone that have a token in it."""
        columns = range(self.start, self.stop)
        return replace(self, rows=tuple(row for row in self.rows if self.block.holds(row, columns)))

    @property
    def whole(self) -> bool:
        """Whether all rows run."""
        return len(self.rows) == self.block.rows

    @cached_property
    def running(self) -> torch.Tensor:
        """`rows` as int64, on the block's device."""
        return torch.tensor(self.rows, device=self.block.tokens.device)

    @cached_property
    def runner(self) -> torch.Tensor:
        """Place among `rows` of the row that runs for each row, be it itself or the owner of its context; -1 where
        that does not run. Int64, shape (rows,), on the block's device."""
        places = {row: place for place, row in enumerate(self.rows)}
        runners = [places.get(row, -1) for row in self.block.runners(self.stop)]
        return torch.tensor(runners, device=self.block.tokens.device)

    @cached_property
    def filled(self) -> torch.Tensor:
        """The rows that run or whose owner runs; int64, on the block's device."""
        return (self.runner >= 0).nonzero()[:, 0]

    @property
    def first_position(self) -> int:
        """The answer token that the first of the kept columns predicts."""
        return self.stop - self.kept - self.block.context_width + 1

    def predicting(self, outputs: torch.Tensor) -> torch.Tensor:
        """The kept columns, for all rows, of what ends with them; from shape (rows that run, columns, ...) to
        (rows, kept, ...)."""
        kept = outputs[:, outputs.shape[1] - self.kept :]
        return kept if self.whole else kept[self.runner]

    def takes_part(self, row: int) -> bool:
        """Whether a token of row r's unfinished answer, or of its context, is fed in this call."""
        return self.active[row] and self.block.holds(row, range(self.start, self.stop))


BeforePass = Callable[[Pass], None]
"""Called before each forward call, so that faults can be armed or taken back between passes."""


def align(
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: torch.device,
    owners: Sequence[int] | None = None,
) -> Block:
    """A block of contexts and the answer tokens that are fed after them (empty ones to generate).

    `owners[r]` is a row with the same context as row r, which runs for both; each row its own if not given.

    Padding is masked, so any token will do: a row is padded with its own first and last token. A fault in the
    embedding of a token then never reaches rows that don't hold it (NaN x 0 is NaN, also in a masked column).
    """
    width = max(map(len, contexts))
    columns = width + max(map(len, answers))
    rows = [(*context, *answer) for context, answer in zip(contexts, answers, strict=True)]
    before = [width - len(context) for context in contexts]
    after = [columns - begin - len(row) for begin, row in zip(before, rows, strict=True)]
    tokens = torch.tensor(
        [(row[0],) * left + row + (row[-1],) * right for left, row, right in zip(before, rows, after, strict=True)]
    )
    mask = torch.tensor(
        [(0,) * left + (1,) * len(row) + (0,) * right for left, row, right in zip(before, rows, after, strict=True)]
    )
    return Block(
        tokens.to(device),
        mask.to(device),
        width,
        tuple(map(len, contexts)),
        tuple(map(len, answers)),
        tuple(range(len(rows)) if owners is None else owners),
    )


def cut(block: Block, boundaries: frozenset[int], columns: Sequence[int] = ()) -> tuple[Pass, ...]:
    """The forward calls over a block that is cut before the passes `boundaries` and before `columns`; where rows share
    contexts, before the answers too."""
    width = int(block.tokens.shape[1])
    wanted = {block.start(number) for number in boundaries if 0 < number <= block.last_pass} | set(columns)
    if block.shares_contexts:
        wanted.add(block.context_width)
    starts = sorted({0} | {column for column in wanted if 0 < column < width})
    active = (True,) * block.rows
    return tuple(
        Pass(
            block,
            block.number(start),
            block.number(stop - 1),
            start,
            stop,
            max(0, stop - max(start, block.context_width - 1)),
            active,
            tuple(sorted(set(block.runners(stop)))),
        )
        for start, stop in zip(starts, [*starts[1:], width], strict=True)
    )
