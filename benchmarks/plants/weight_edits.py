"""Wrong weights in place of right ones: functions of a matrix or vector, output channels first, in its own dtype.

They need torch alone. Quantised formats are simulated: their words are multiplied out before the error is made.
"""

from collections.abc import Callable, Sequence

import torch

Edit = Callable[..., torch.Tensor]
"""From a tensor and named parameters to a tensor of the same shape."""


def scale(weight: torch.Tensor, factor: float) -> torch.Tensor:
    """A constant factor too much: a wrong scale of the whole tensor."""
    return weight * factor


def scale_rows(weight: torch.Tensor, factor: float, first: int, count: int) -> torch.Tensor:
    """A constant factor too much on some output channels: the scale of another row, group or shard."""
    rows = torch.arange(weight.shape[0]).view(-1, *[1] * (weight.dim() - 1))
    return torch.where((rows >= first) & (rows < first + count), weight * factor, weight)


def fill(weight: torch.Tensor, value: float) -> torch.Tensor:
    """One value everywhere: a tensor that was never loaded."""
    return torch.full_like(weight, value)


def add(weight: torch.Tensor, by: float) -> torch.Tensor:
    """A constant too much on every word (a gain read as 1 + w; an offset twice)."""
    return weight + by


def zero_rows(weight: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Output channels that were not loaded."""
    return scale_rows(weight, 0.0, first, count)


def repeat_rows(weight: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Output channels that hold the words of those just before them: a copy that was shifted by `count` rows."""
    changed = weight.clone()
    changed[first : first + count] = weight[first - count : first]
    return changed


def transpose(weight: torch.Tensor) -> torch.Tensor:
    """Rows as columns, in a square matrix, where every shape check passes."""
    return weight.T.contiguous()


def roll_rows(weight: torch.Tensor, by: int) -> torch.Tensor:
    """Row i holds row i - by."""
    return weight.roll(by, 0)


def to_interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of every head from (first half, second half) to pairs: the converter's permutation, once too often."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The way back: rows of every head from pairs to (first half, second half)."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def order_heads(weight: torch.Tensor, heads: int, order: Sequence[int]) -> torch.Tensor:
    """Heads in another order; `order[i]` is the head that comes i-th."""
    return weight.reshape(heads, -1, *weight.shape[1:])[list(order)].reshape(weight.shape)


def interleave_shards(weight: torch.Tensor, shards: int) -> torch.Tensor:
    """Rows dealt out to shards in turn, though gathered as if each had a contiguous part."""
    return weight.reshape(-1, shards, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def repeat_shard(weight: torch.Tensor, shards: int) -> torch.Tensor:
    """Every shard holds the first one's rows."""
    return torch.cat([weight.chunk(shards)[0]] * shards)


def shift_blocks(weight: torch.Tensor, levels: int, block: int) -> torch.Tensor:
    """A zero point that is off by one step: in every block of inputs, one step (range / levels) too much."""
    blocks = weight.reshape(*weight.shape[:-1], -1, block)
    step = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / levels
    return (blocks + step).reshape(weight.shape)


def swap_block_scales(weight: torch.Tensor, block: int) -> torch.Tensor:
    """Neighbouring blocks of inputs take each other's scale (the largest magnitude)."""
    blocks = weight.reshape(*weight.shape[:-1], -1, 2, block)
    scales = blocks.abs().amax(-1, keepdim=True)
    return (blocks / scales * scales.flip(-2)).reshape(weight.shape)


def coarsen(weight: torch.Tensor, levels: int, block: int) -> torch.Tensor:
    """Rounded to 2 * levels + 1 even steps up to each block's largest magnitude (levels = 7: 4 bits)."""
    blocks = weight.reshape(*weight.shape[:-1], -1, block)
    step = blocks.abs().amax(-1, keepdim=True) / levels
    return ((blocks / step).round() * step).reshape(weight.shape)


def stretch_inputs(weight: torch.Tensor, most: float) -> torch.Tensor:
    """Columns multiplied by factors from 1 to `most`: smoothing whose other half was never folded into the norm."""
    factors = torch.linspace(1.0, most, weight.shape[-1]).to(weight.dtype)
    return weight * factors


EDITS: dict[str, Edit] = {
    each.__name__: each
    for each in (
        scale,
        scale_rows,
        fill,
        add,
        zero_rows,
        repeat_rows,
        transpose,
        roll_rows,
        to_interleaved,
        to_halves,
        order_heads,
        interleave_shards,
        repeat_shard,
        shift_blocks,
        swap_block_scales,
        coarsen,
        stretch_inputs,
    )
}
