"""A systolic array of int8 multipliers and int32 accumulators: its tiles, its cycles, its checksum column or row.

Y = W X with W of shape (outputs, depth) and X of shape (depth, tokens). Weight-stationary, a tile of W stays in the
array, depth along the rows and outputs along the columns, and tokens stream through; output-stationary, a tile of Y
stays, outputs along the rows and tokens along the columns, and depth streams through.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from aftershock.errors import InputError

Dataflow = Literal["weight-stationary", "output-stationary"]


@dataclass(frozen=True)
class Gemm:
    """The shape of a product Y = W X: Y is (outputs, tokens), summed over depth. InputError below 1."""

    outputs: int
    depth: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.outputs, self.depth, self.tokens) < 1:
            raise InputError(
                f"a product of shape {self.outputs} x {self.depth} x {self.tokens} is empty: give sizes from 1"
            )

    @property
    def multiplications(self) -> int:
        """Multiply-accumulate operations."""
        return self.outputs * self.depth * self.tokens


@dataclass(frozen=True)
class Cycles:
    """Clock cycles of a product: `fill` before the first operand meets the last element, `stream`, `drain` after."""

    fill: int
    stream: int
    drain: int

    @property
    def total(self) -> int:
        """All of them, tiles one after the other with nothing overlapped."""
        return self.fill + self.stream + self.drain


@dataclass(frozen=True)
class SystolicArray:
    """An array of rows x columns processing elements; ReaLM's is 256 x 256. InputError when it has none."""

    dataflow: Dataflow
    rows: int = 256
    columns: int = 256

    def __post_init__(self) -> None:
        if self.dataflow not in ("weight-stationary", "output-stationary"):
            raise InputError(f"no dataflow {self.dataflow!r}: take weight-stationary or output-stationary")
        if min(self.rows, self.columns) < 1:
            raise InputError(f"an array of {self.rows} x {self.columns} elements is empty: give sizes from 1")

    @property
    def tile_outputs(self) -> int:
        """Outputs of a tile: over them a checksum sums."""
        return self.columns if self.dataflow == "weight-stationary" else self.rows

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile, entries of the buffer of differences; a weight-stationary stream is cut every so many."""
        return self.columns

    def passes(self, gemm: Gemm) -> int:
        """Into how many partial sums an output is cut: weight-stationary, one for each `rows` of depth."""
        return ceil(gemm.depth / self.rows) if self.dataflow == "weight-stationary" else 1

    def tiles(self, gemm: Gemm) -> int:
        """Tiles that are judged, and recomputed, each alone."""
        blocks = ceil(gemm.outputs / self.tile_outputs) * ceil(gemm.tokens / self.tile_tokens)
        return self.passes(gemm) * blocks

    def cycles(self, gemm: Gemm) -> Cycles:
        """Cycles without checksums: 2 rows + columns - 2 and the stream for every tile that is held.

        The model of SCALE-Sim (Samajdar et al., ISPASS 2020): tiles at the edge take as long as full ones.
        """
        return self._cycles(gemm, self.rows, self.columns)

    def checked_cycles(self, gemm: Gemm) -> Cycles:
        """Cycles with checksums. A model: each line of elements or adders that a wave passes costs it one cycle.

        Weight-stationary: one more column holds e^T W, a row of adders sums e^T Y. Output-stationary: one more row
        computes e^T W X, which shifts out with the rest, and a column of adders sums e^T W. The stream is as long as
        before.
        """
        return self._cycles(gemm, self.rows + 1, self.columns + 1)

    def checksum_elements(self) -> float:
        """Processing elements added, as a share of the array's; adders, buffer and comparators are not counted."""
        return 1 / (self.columns if self.dataflow == "weight-stationary" else self.rows)

    def _cycles(self, gemm: Gemm, rows: int, columns: int) -> Cycles:
        across = rows + columns - 2
        if self.dataflow == "weight-stationary":
            held = ceil(gemm.outputs / self.columns) * ceil(gemm.depth / self.rows)
            # Weights shift in down the rows; the last result leaves once its wave has crossed the array.
            return Cycles(held * self.rows, held * gemm.tokens, held * across)
        held = ceil(gemm.outputs / self.rows) * ceil(gemm.tokens / self.columns)
        return Cycles(held * across, held * gemm.depth, held * rows)
