"""A quick check of live tensors at the speed of memory: two sums of 64 bits for each tensor.

A tensor's bytes, filled up with zeros, are little-endian 64-bit words in chunks of 127 rows x 1016 lanes. The 127 words
of a lane are added up modulo 2^64. Sum 0 is that of all lanes of all chunks, each times an odd multiplier of its own,
modulo 2^64; sum 1 the same with other multipliers and the two halves of each lane's sum swapped.

What is seen. A change of one word, or of any words whose lane sums change in one lane alone, always changes both sums,
since an odd number has an inverse. Changes in several lanes leave both sums with chance 2^-32 at most, were the
multipliers drawn at random, and about 2^-64 for most: if the lower half of some lane's sum changes, its change is
2^k times an odd number with k < 32, and times its multiplier it undoes the rest of sum 0 for 2^k of the 2^63 odd
numbers; if only upper halves change, that holds for sum 1. (Multilinear hashing: Lemire and Kaser, The Computer
Journal 57, 2014. Sum 0 alone would miss every pair of flips of the uppermost bits of two words.)

What is not seen. Changes in one lane of one chunk whose sum is 0 modulo 2^64. Two flips of the same bit of two of the
127 words of a lane, 8,128 bytes apart or a multiple of it, are such if one sets the bit and the other clears it; so is
a bit b that is set in 2^(64 - b) words of a lane, or a multiple of it: two for b = 63, four for 62, 64 for 58. For two
random flips in a tensor of n words, n at least one chunk of 129,032, that has a chance of about 1/n: one in 129,000
for 1 MB, one in 17 million for 134 MB. A digest sees those too. What a stuck column or data line sets is not among
them: see `chunk_table`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_char
from dataclasses import replace
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from aftershock.detect.chunk_table import CHUNK, LANES, ROWS, chunk_table
from aftershock.detect.digests import derived
from aftershock.detect.multipliers import multipliers
from aftershock.errors import InputError
from aftershock.models import ModelWords, TensorWords, parts

_MASK = 2**64 - 1
_SLICE = 8 * CHUNK
"""Bytes that torch sums in one go."""

_GROUP = 64
"""Most chunks that a thread adds up before it weighs their lanes, which stay in its cache."""


def seed_of(key: bytes | None) -> int:
    """Where the multipliers begin: at 0, or where a key says."""
    return 0 if key is None else int.from_bytes(derived(key, "multipliers")[:8], "little")


def checksum(words: ModelWords, tensor: TensorWords, seed: int = 0) -> tuple[int, int]:
    """Checksum of one tensor, read a part at a time. Raises InputError as `read` does."""
    own = weights(tensor.size, seed)
    sums = np.zeros(2, np.uint64)
    for first, part in parts(words, replace(tensor, rows=-(-tensor.size // CHUNK), columns=CHUNK, width=1)):
        data = part.flatten()[: tensor.size - first * CHUNK].cpu()
        sums += _by_threads([data], (own[0][first:], own[1][first:]))[0]
    return int(sums[0]), int(sums[1])


def checksums(tensors: Sequence[torch.Tensor], seed: int = 0) -> list[tuple[int, int]]:
    """Checksums of live tensors of any dtype, each read once where it is: on the CPU by as many threads as torch has,
    on CUDA by one kernel for all tensors of a device (by torch's own operations where triton is missing).

    Raises InputError for a tensor that is made of others and has no memory of its own.
    """
    found: list[tuple[int, int]] = [(0, 0)] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        some = [_in_order(tensors[place]) for place in places]
        own = weights(max(one.nbytes for one in some), seed, device)
        for place, sums in zip(places, _on_device(some, own), strict=True):
            found[place] = sums
    return found


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in order in memory."""
    data = tensor if tensor.is_contiguous() else tensor.detach().contiguous()
    if data.nbytes and not data.data_ptr():  # from here on its address is read, not its values
        raise InputError(
            f"a tensor of type {type(tensor).__name__} has no memory of its own: give the tensors that it is made of"
        )
    return data


Weights = tuple[torch.Tensor, torch.Tensor]
"""Multipliers of all chunks of a tensor, for sum 0 and for sum 1: int64, shape (chunks, LANES) each."""


def weights(size: int, seed: int, device: torch.device | str = "cpu") -> Weights:
    """Multipliers for a tensor of `size` bytes or fewer; those of a chunk are the same for any size."""
    return _weights(1 << max(-(-size // CHUNK) - 1, 0).bit_length(), seed, device)


@lru_cache(maxsize=16)  # one for each power of two: together twice the longest: 3 to 6 % of the largest tensor
def _weights(chunks: int, seed: int, device: torch.device | str) -> Weights:
    first, second = multipliers(chunks * 2 * LANES, seed, device).view(chunks, 2, LANES).unbind(1)
    return first.contiguous(), second.contiguous()


def _on_device(some: Sequence[torch.Tensor], own: Weights) -> list[tuple[int, int]]:
    device = own[0].device.type
    if device == "cpu":
        return [(first, second) for first, second in _by_threads(some, own).tolist()]
    if device == "cuda" and _has_triton():
        from aftershock.detect.kernels import sums_by_kernel

        sums = sums_by_kernel(some, *own)
    else:
        sums = torch.stack([sums_by_torch(one.detach().flatten().view(torch.uint8), own) for one in some])
    return [(first & _MASK, second & _MASK) for first, second in sums.tolist()]


@cache  # to look through the path takes longer than to sum a small model
def _has_triton() -> bool:
    return find_spec("triton") is not None


def sums_by_torch(data: torch.Tensor, own: Weights) -> torch.Tensor:
    """Both sums of a tensor's bytes (uint8, 1-D), on their device: int64, shape (2,)."""
    total = torch.zeros(2, dtype=torch.int64, device=data.device)
    for first, some in enumerate(torch.split(data, _SLICE)):
        padded = torch.nn.functional.pad(some, (0, -len(some) % CHUNK)).view(torch.int64)
        lanes = padded.view(-1, ROWS, LANES).sum(1)
        swapped = (lanes << 32) | ((lanes >> 32) & 0xFFFFFFFF)
        now = slice(first * _SLICE // CHUNK, first * _SLICE // CHUNK + len(lanes))
        total[0] += (lanes * own[0][now]).sum()
        total[1] += (swapped * own[1][now]).sum()
    return total


def _by_threads(some: Sequence[torch.Tensor], own: Weights) -> np.ndarray:
    """Both sums of each of some contiguous CPU tensors, whose chunks threads share: uint64, shape (tensors, 2)."""
    table = chunk_table([one.nbytes for one in some])
    found = np.empty((len(table), 2), np.uint64)
    threads = torch.get_num_threads()
    size = min(_GROUP, len(table) // (2 * threads) + 1)
    groups = range(0, len(table), size)
    todo = iter(groups)

    def work() -> None:
        room = np.empty((3, size, LANES), np.uint64)
        for begin in todo:
            found[begin : begin + size] = _sums(some, table[begin : begin + size], own, room)

    with ThreadPoolExecutor(threads) as pool:
        others = [pool.submit(work) for _ in range(min(threads, len(groups)) - 1)]
        work()
    for other in others:
        other.result()
    until = np.cumsum(np.concatenate([np.zeros((1, 2), np.uint64), found]), axis=0, dtype=np.uint64)
    ends = np.searchsorted(table[:, 0], np.arange(len(some)), side="right")
    return np.diff(until[ends], axis=0, prepend=until[:1])


def _sums(some: Sequence[torch.Tensor], group: np.ndarray, own: Weights, room: np.ndarray) -> np.ndarray:
    """Both sums of each chunk of a group, rows of the `chunk_table` of `some`: uint64, shape (chunks, 2).

    Threads wait for each other wherever Python runs, so it is done in few long operations, in `room` that is there:
    uint64, shape (3, chunks or more, LANES).
    """
    lanes, swapped, other = room[:, : len(group)]
    begin = 0
    for owner, rows in groupby(group.tolist(), itemgetter(0)):
        (_, place, _), *rest = rows
        end = begin + 1 + len(rest)
        _add_lanes(_memory(some[owner])[place * CHUNK : (place + end - begin) * CHUNK], lanes[begin:end])
        begin = end
    np.left_shift(lanes, np.uint64(32), out=swapped)
    np.right_shift(lanes, np.uint64(32), out=other)
    np.bitwise_or(swapped, other, out=swapped)
    sums = np.empty((len(group), 2), np.uint64)
    for number, (summed, factors) in enumerate(zip((lanes, swapped), own, strict=True)):
        # With mode="raise" numpy would take a copy first.
        np.take(factors.numpy().view(np.uint64), group[:, 1], axis=0, out=other, mode="clip")
        np.einsum("ij,ij->i", summed, other, out=sums[:, number])
    return sums


def _memory(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a contiguous CPU tensor where they lie: uint8, 1-D. Torch's own views take four times as long."""
    return np.frombuffer(memoryview((c_char * tensor.nbytes).from_address(tensor.data_ptr())), np.uint8)


def _add_lanes(data: np.ndarray, lanes: np.ndarray) -> None:
    """Add up the words of some bytes (uint8, 1-D) in the lanes of their chunks: uint64, shape (chunks, LANES)."""
    full, rest = divmod(len(data) // 8, ROWS * LANES)
    rows, row = divmod(rest, LANES)
    if full:
        np.add.reduce(np.ndarray((full, ROWS, LANES), np.uint64, data), axis=1, out=lanes[:full])
    if full < len(lanes):
        last, begin = lanes[full], full * CHUNK
        np.add.reduce(np.ndarray((rows, LANES), np.uint64, data, begin), axis=0, out=last)
        last[:row] += np.ndarray(row, np.uint64, data, begin + rows * LANES * 8)
        if odd := len(data) % 8:
            last[row : row + 1] += np.frombuffer(bytes(data[-odd:]).ljust(8, b"\0"), np.uint64)
