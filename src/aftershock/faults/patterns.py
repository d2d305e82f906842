"""Which values one event strikes together."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

PatternName = Literal["word", "row", "column", "block", "stride"]


@dataclass(frozen=True)
class Pattern:
    """`height` x `width` values of a matrix, `stride` apart along its rows; None: as many as there are.

    A tensor of more dimensions is a stack of matrices, one of fewer a matrix of one row.
    """

    height: int | None
    width: int | None
    stride: int

    def placements(self, shape: tuple[int, ...]) -> int:
        """In how many places of a tensor the pattern fits."""
        return prod(self._places(shape))

    def struck(self, shape: tuple[int, ...], placement: int) -> np.ndarray:
        """Flat positions of the values struck (int64, ascending) in one of its placements."""
        rows, columns = _matrix(shape)
        matrix, row, column = (int(part) for part in np.unravel_index(placement, self._places(shape)))
        at_rows = (matrix * rows + row + np.arange(self.height or rows)) * columns
        at_columns = np.arange(column, columns, self.stride)[: self.width]
        positions: np.ndarray = (at_rows[:, None] + at_columns).ravel()
        return positions

    def _places(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """In how many matrices, rows and columns it can begin; where it takes all of a row, in each lane."""
        rows, columns = _matrix(shape)
        lanes = min(self.stride, columns)
        return (
            prod(shape[:-2]),
            max(0, rows - (self.height or rows) + 1),
            lanes if self.width is None else max(0, columns - (self.width - 1) * self.stride),
        )


def pattern_of(name: PatternName, span: int | Literal["all"], stride: int) -> Pattern:
    """The pattern of a name: `span` values of a row or column, a square of `span` x `span`, or `span` values of a row
    that lie `stride` apart."""
    count = None if span == "all" else span
    shapes: dict[PatternName, Pattern] = {
        "word": Pattern(1, 1, 1),
        "row": Pattern(1, count, 1),
        "column": Pattern(count, 1, 1),
        "block": Pattern(count, count, 1),
        "stride": Pattern(1, count, stride),
    }
    return shapes[name]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the last two dimensions."""
    return (shape[-2] if len(shape) > 1 else 1), shape[-1]
