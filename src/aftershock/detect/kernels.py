"""The checksum of all tensors of a CUDA device by one Triton kernel. Imported only where triton is installed."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl

_ROWS, _LANES = tl.constexpr(128), tl.constexpr(1024)
_TILE = tl.constexpr(4)
_ALIGNED = 16
"""Bytes that begin and length of a tensor are whole multiples of, so that loads are wide."""


def sums_by_kernel(some: Sequence[torch.Tensor], first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Both sums of each tensor's bytes (uint8, 1-D, all on one CUDA device): int64, shape (tensors, 2), on the device.

    `first` and `second` are the `weights` of the longest one. A tensor that does not begin or end at a multiple of
    16 bytes is copied first.
    """
    aligned = [_aligned(one) for one in some]
    device = first.device
    counts = [-(-len(one) // (8 * _ROWS.value * _LANES.value)) for one in aligned]
    ends = list(accumulate(counts))
    # One transfer for all: each makes Python wait for the device.
    table = torch.tensor(
        [
            [one.data_ptr() for one in aligned],
            [len(one) // 8 for one in aligned],
            [end - count for end, count in zip(ends, counts, strict=True)],
            ends,
        ],
        dtype=torch.int64,
        device=device,
    )
    addresses, lengths, begins, ends_there = table.unbind()
    sums = torch.zeros(len(aligned), 2, dtype=torch.int64, device=device)
    if chunks := ends[-1]:
        chunk = torch.arange(chunks, device=device)
        owners = torch.searchsorted(ends_there, chunk, right=True)
        places = chunk - begins[owners]
        found = torch.empty(chunks, 2, dtype=torch.int64, device=device)
        with torch.cuda.device(device):
            _sum_chunk[(chunks,)](addresses, lengths, owners, places, first, second, found, num_warps=8)
        sums.index_add_(0, owners, found)
    return sums


def _aligned(data: torch.Tensor) -> torch.Tensor:
    if data.data_ptr() % _ALIGNED == 0 and len(data) % _ALIGNED == 0:
        return data
    return torch.nn.functional.pad(data, (0, -len(data) % _ALIGNED)).clone()


@triton.jit
def _sum_chunk(addresses, lengths, owners, places, first, second, found):
    """Both sums of one chunk, of the program's number."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    place = tl.load(places + chunk)
    length = tl.multiple_of(tl.load(lengths + owner), 2)
    words = tl.multiple_of(tl.load(addresses + owner).to(tl.pointer_type(tl.int64)), 16)
    lane = tl.arange(0, _LANES)
    tile = tl.arange(0, _TILE)[:, None] * _LANES + lane[None, :]
    total = tl.zeros([_TILE, _LANES], dtype=tl.int64)
    for row in range(0, _ROWS, _TILE):
        offset = (place * _ROWS + row) * _LANES + tile
        total += tl.load(words + offset, mask=offset < length, other=0)
    lanes = tl.sum(total, axis=0)
    swapped = (lanes << 32) | ((lanes >> 32) & 0xFFFFFFFF)
    own = place * _LANES + lane
    tl.store(found + 2 * chunk, tl.sum(lanes * tl.load(first + own), axis=0))
    tl.store(found + 2 * chunk + 1, tl.sum(swapped * tl.load(second + own), axis=0))
