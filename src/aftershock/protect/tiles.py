"""Integer products tile by tile: what their checksums say, and which tiles a scheme computes again.

A product of M tokens and N outputs is cut into tiles of an array, `tile_outputs` outputs by `tile_tokens` tokens with
the whole depth, as an output-stationary array finishes them. A weight-stationary one hands over partial sums: cut the
operands `by_depth`, and give sums with the same first axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from aftershock.detect import integer_row_deviations
from aftershock.hardware import Scheme, SystolicArray, TileErrors

Booleans = npt.NDArray[np.bool_]
Scope = Literal["tile", "product"]
"""What a scheme judges and computes again: each tile alone, or all tiles of a product together."""


@dataclass(frozen=True, eq=False)
class Recovered:
    """`sums`, int32, shaped as given, with what was computed again; `alarms`, `corrupted` and `again`, bool, shape
    (tiles,): tiles whose checksums differ, that hold a wrong sum, and that are computed again."""

    sums: torch.Tensor
    alarms: Booleans
    corrupted: Booleans
    again: Booleans


def tile_deviations(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor, array: SystolicArray) -> torch.Tensor:
    """ReaLM's d = e^T W X - e^T Y for every token of every tile, exact: int64, shape (tiles, tile_tokens).

    `sums`: int32 (..., M, N), of `left` (..., M, K) times `right` (..., K, N), or (K, N) for all, whose rows are then
    the tokens of one product. Tiles in the order (product, outputs, tokens), the last fastest; 0 where a tile at the
    edge has no token.
    """
    if right.ndim == 2:
        sums, left = sums.flatten(0, -2), left.flatten(0, -2)
    width = array.tile_outputs
    parts = zip(torch.split(right, width, -1), torch.split(sums, width, -1), strict=True)
    by_block = torch.stack([integer_row_deviations(left, columns, part) for columns, part in parts], -2)
    missing = -by_block.shape[-1] % array.tile_tokens
    return torch.nn.functional.pad(by_block, (0, missing)).reshape(-1, array.tile_tokens)


def recover(
    sums: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    clean: Callable[[], torch.Tensor],
    scheme: Scheme,
    array: SystolicArray,
    scope: Scope = "tile",
) -> Recovered:
    """Judge sums as `tile_deviations` takes them, and put the `clean` ones into the tiles that `scheme` computes again.

    `clean` computes the sums once more, and is called only where a checksum differs. Under a scheme whose `replacement`
    is "zero" sums that are wrong become 0. Thresholds and regions of the scheme are for one tile, or with scope
    "product" for a whole product. Waits for the device.
    """
    differences = tile_deviations(sums, left, right, array).cpu().numpy()
    if not differences.any():
        none = np.zeros(len(differences), dtype=np.bool_)
        return Recovered(sums, none, none, none)
    right_ones = clean()
    matrices = as_matrices(sums, right)
    wrong = matrices != as_matrices(right_ones, right)
    tiles = TileErrors(differences, _tiles_with(wrong, array))
    if scope == "tile":
        again = scheme.recomputed(tiles)
    else:
        whole = TileErrors(differences.reshape(1, -1), np.array([tiles.corrupted.any()]))
        again = np.broadcast_to(scheme.recomputed(whole), tiles.corrupted.shape)
    if scheme.replacement == "zero":
        mended = matrices.masked_fill(wrong, 0)
    elif again.any():
        mended = torch.where(_spread(again, matrices, array), as_matrices(right_ones, right), matrices)
    else:
        mended = matrices
    return Recovered(mended.view_as(sums), tiles.alarms, tiles.corrupted, again)


def by_depth(left: torch.Tensor, right: torch.Tensor, array: SystolicArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands cut along K as a weight-stationary array holds them, `array.rows` at a time, zeros added to the last:
    (..., M, K) and (..., K, N) to (passes, ..., M, rows) and (passes, ..., rows, N). Rows of `left` become those of one
    matrix where `right` has two axes."""
    if right.ndim == 2:
        left = left.flatten(0, -2)
    missing = -left.shape[-1] % array.rows
    lefts = torch.nn.functional.pad(left, (0, missing))
    rights = torch.nn.functional.pad(right, (0, 0, 0, missing))
    return torch.stack(torch.split(lefts, array.rows, -1)), torch.stack(torch.split(rights, array.rows, -2))


def as_matrices(sums: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sums with that right operand as matrices, a view of shape (products, tokens, outputs): one matrix where all share
    the operand, which then has two axes."""
    return sums.flatten(0, -2).unsqueeze(0) if right.ndim == 2 else sums.flatten(0, -3)


def _tiles_with(wrong: torch.Tensor, array: SystolicArray) -> Booleans:
    """Which tiles hold any of some sums, shape (products, tokens, outputs): (tiles,)."""
    _, tokens, outputs = wrong.shape
    whole = torch.nn.functional.pad(wrong, (0, -outputs % array.tile_outputs, 0, -tokens % array.tile_tokens))
    products, tokens, outputs = whole.shape
    shape = products, -1, array.tile_tokens, outputs // array.tile_outputs, array.tile_outputs
    found: Booleans = whole.view(shape).any(4).any(2).mT.flatten().cpu().numpy()
    return found


def _spread(again: Booleans, matrices: torch.Tensor, array: SystolicArray) -> torch.Tensor:
    """Which sums lie in some tiles: bool, shaped as the matrices."""
    products, tokens, outputs = matrices.shape
    chosen = torch.from_numpy(again.copy()).to(matrices.device)
    grid = chosen.view(products, -(-outputs // array.tile_outputs), -1).mT
    by_token = grid.repeat_interleave(array.tile_tokens, -2)[:, :tokens]
    return by_token.repeat_interleave(array.tile_outputs, -1)[..., :outputs]
