"""The checksum of all tensors of a CUDA device by one Triton kernel. Imported only where triton is installed."""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from aftershock.detect.chunk_table import CHUNK, LANES, ROWS, chunk_table

_ROWS, _LANES = tl.constexpr(ROWS), tl.constexpr(LANES)
_TILE, _WIDTH = tl.constexpr(4), tl.constexpr(triton.next_power_of_2(LANES))
"""Rows at a time, and lanes with those that stay empty: Triton wants powers of two."""
_ALIGNED = 16
"""Bytes that begin and length of a tensor are whole multiples of, so that loads are wide."""


def sums_by_kernel(some: Sequence[torch.Tensor], first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Both sums of each tensor (contiguous, of any dtype, all on one CUDA device): int64, shape (tensors, 2), there.

    `first` and `second` are the `weights` of the longest one. A tensor that does not begin or end at a multiple of
    16 bytes is copied first.
    """
    aligned = [_aligned(one) for one in some]
    table = chunk_table([one.nbytes for one in aligned])
    owners, places, _ = table.T
    addresses = np.array([one.data_ptr() for one in aligned], np.int64)[owners] + CHUNK * places
    # The device idles until the kernel starts: numpy and one transfer are sooner done than many small operations there.
    chunks = torch.from_numpy(np.column_stack([addresses, table])).to(first.device)
    found = torch.empty(len(chunks), 2, dtype=torch.int64, device=first.device)
    if len(chunks):
        with torch.cuda.device(first.device):
            _sum_chunk[(len(chunks),)](chunks, first, second, found, num_warps=8)
    sums = torch.zeros(len(aligned), 2, dtype=torch.int64, device=first.device)
    return sums.index_add_(0, chunks[:, 1], found)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.data_ptr() % _ALIGNED == 0 and tensor.nbytes % _ALIGNED == 0:
        return tensor
    data = tensor.detach().flatten().view(torch.uint8)
    return torch.nn.functional.pad(data, (0, -len(data) % _ALIGNED)).clone()


@triton.jit
def _sum_chunk(chunks, first, second, found):
    """Both sums of one chunk, of the program's number; `chunks` are rows of address, owner, place and bytes."""
    chunk = tl.program_id(0)
    words = tl.multiple_of(tl.load(chunks + 4 * chunk).to(tl.pointer_type(tl.int64)), 16)
    place = tl.load(chunks + 4 * chunk + 2)
    length = tl.multiple_of(tl.load(chunks + 4 * chunk + 3) // 8, 2)
    lane = tl.arange(0, _WIDTH)
    used = lane < _LANES
    tile = tl.arange(0, _TILE)[:, None] * _LANES + lane[None, :]
    total = tl.zeros([_TILE, _WIDTH], dtype=tl.int64)
    for row in range(0, _ROWS, _TILE):
        offset = row * _LANES + tile
        total += tl.load(words + offset, mask=(offset < length) & used[None, :], other=0)
    lanes = tl.sum(total, axis=0)
    swapped = (lanes << 32) | ((lanes >> 32) & 0xFFFFFFFF)
    own = place * _LANES + lane
    tl.store(found + 2 * chunk, tl.sum(lanes * tl.load(first + own, mask=used, other=0), axis=0))
    tl.store(found + 2 * chunk + 1, tl.sum(swapped * tl.load(second + own, mask=used, other=0), axis=0))
