"""A quick check of live tensors at the speed of memory: two sums of 64 bits for each tensor.

A tensor's bytes, filled up with zeros, are little-endian 64-bit words in chunks of 128 rows x 1024 lanes. The 128 words
of a lane are added up modulo 2^64. Sum 0 is that of all lanes of all chunks, each times an odd multiplier of its own,
modulo 2^64; sum 1 the same with other multipliers and the two halves of each lane's sum swapped.

What is seen. A change of one word, or of any words whose lane sums change in one lane alone, always changes both sums,
since an odd number has an inverse. Changes in several lanes leave both sums with chance 2^-32 at most, were the
multipliers drawn at random, and about 2^-64 for most: if the lower half of some lane's sum changes, its change is
2^k times an odd number with k < 32, and times its multiplier it undoes the rest of sum 0 for 2^k of the 2^63 odd
numbers; if only upper halves change, that holds for sum 1. (Multilinear hashing: Lemire and Kaser, The Computer
Journal 57, 2014. Sum 0 alone would miss every pair of flips of the uppermost bits of two words.)

What is not seen. Changes in one lane of one chunk that cancel. Two flips cancel if they strike the same bit of two of
the 128 words of a lane, 8 KiB apart or a multiple of it, and one sets it while the other clears it (at bit 63 always).
For two random flips in a tensor of n words, n at least one chunk of 131,072, that has a chance of about 1/n: one in
131,000 for 1 MiB, one in 17 million for 128 MiB. A digest sees those too.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate

import numpy as np
import torch

from aftershock.detect.digests import chunks, derived
from aftershock.detect.multipliers import multipliers
from aftershock.models import ModelWords, TensorWords

ROWS, LANES = 128, 1024
CHUNK = ROWS * LANES * 8
"""Bytes of a chunk."""

_MASK = 2**64 - 1
_SLICE = 8 * CHUNK
"""Bytes that one thread sums in one go."""

_SHARE = 1 << 29
"""Most bytes, about, whose lanes' sums (1/128 of them) a thread holds before it weighs them."""


def seed_of(key: bytes | None) -> int:
    """Where the multipliers begin: at 0, or where a key says."""
    return 0 if key is None else int.from_bytes(derived(key, "multipliers")[:8], "little")


def checksum(words: ModelWords, tensor: TensorWords, seed: int = 0) -> tuple[int, int]:
    """Checksum of one tensor, read a part at a time. Raises InputError as `read` does."""
    own = weights(tensor.size, seed)
    sums = np.zeros(2, np.uint64)
    for first, some in chunks(words, tensor):
        sums += _sums([some.cpu().numpy()], [first], own)[0]
    return int(sums[0]), int(sums[1])


def checksums(tensors: Sequence[torch.Tensor], seed: int = 0) -> list[tuple[int, int]]:
    """Checksums of live tensors of any dtype, each read once where it is: on the CPU by as many threads as torch has,
    on CUDA by one kernel for all tensors of a device (by torch's own operations where triton is missing)."""
    found: list[tuple[int, int]] = [(0, 0)] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        some = [tensors[place].detach().flatten().view(torch.uint8) for place in places]
        own = weights(max(len(one) for one in some), seed, device)
        for place, sums in zip(places, _on_device(some, own), strict=True):
            found[place] = sums
    return found


Weights = tuple[torch.Tensor, torch.Tensor]
"""Multipliers of all chunks of a tensor, for sum 0 and for sum 1: int64, shape (chunks, LANES) each."""


def weights(size: int, seed: int, device: torch.device | str = "cpu") -> Weights:
    """Multipliers for a tensor of `size` bytes or fewer; those of a chunk are the same for any size."""
    return _weights(1 << max(-(-size // CHUNK) - 1, 0).bit_length(), seed, device)


@lru_cache(maxsize=16)  # one for each power of two: together twice the longest: 3 to 6 % of the largest tensor
def _weights(chunks: int, seed: int, device: torch.device | str) -> Weights:
    first, second = multipliers(chunks * 2 * LANES, seed, device).view(chunks, 2, LANES).unbind(1)
    return first.contiguous(), second.contiguous()


def _on_device(some: Sequence[torch.Tensor], own: Weights) -> Sequence[tuple[int, int]]:
    device = own[0].device.type
    if device == "cpu":
        return _by_threads([one.numpy() for one in some], own)
    if device == "cuda" and find_spec("triton"):
        from aftershock.detect.kernels import sums_by_kernel

        sums = sums_by_kernel(some, *own)
    else:
        sums = torch.stack([sums_by_torch(one, own) for one in some])
    return [(first & _MASK, second & _MASK) for first, second in sums.tolist()]


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


def _by_threads(some: Sequence[np.ndarray], own: Weights) -> list[tuple[int, int]]:
    """Sums of tensors' bytes (uint8, 1-D), each cut into slices which threads share."""
    slices = [(place, begin) for place, data in enumerate(some) for begin in range(0, len(data), _SLICE)]
    threads = torch.get_num_threads()
    # Few long shares: threads wait for each other wherever Python runs between two reads.
    count = max(threads, -(-sum(map(len, some)) // _SHARE))
    shares = [share for number in range(count) if (share := slices[number::count])]

    def work(share: Sequence[tuple[int, int]]) -> np.ndarray:
        pieces = [some[place][begin : begin + _SLICE] for place, begin in share]
        return _sums(pieces, [begin // CHUNK for _, begin in share], own)

    total = np.zeros((len(some), 2), np.uint64)
    with ThreadPoolExecutor(threads) as pool:
        for share, found in zip(shares, pool.map(work, shares), strict=True):
            np.add.at(total, [place for place, _ in share], found)
    return [(int(first), int(second)) for first, second in total]


def _sums(pieces: Sequence[np.ndarray], firsts: Sequence[int], own: Weights) -> np.ndarray:
    """Both sums of each piece (uint8, 1-D, not empty), which begins with chunk `firsts` of its tensor: (pieces, 2).

    Weighing comes after all reading, in few long operations: threads wait for each other between short ones.
    """
    counts = [-(-len(piece) // CHUNK) for piece in pieces]
    begins = [0, *accumulate(counts)][:-1]
    lanes = np.zeros((sum(counts), LANES), np.uint64)
    for piece, begin, count in zip(pieces, begins, counts, strict=True):
        _add_lanes(piece, lanes[begin : begin + count])
    places = np.concatenate([np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)])
    swapped = (lanes << np.uint64(32)) | (lanes >> np.uint64(32))
    weighed = [
        np.einsum("ij,ij->i", summed, factors.numpy().view(np.uint64)[places])
        for summed, factors in zip((lanes, swapped), own, strict=True)
    ]
    return np.add.reduceat(np.stack(weighed, 1), begins, axis=0)


def _add_lanes(data: np.ndarray, lanes: np.ndarray) -> None:
    """Add the words of bytes (uint8, 1-D) to the lanes of their chunks, uint64 of shape (chunks, LANES)."""
    full, whole = len(data) // CHUNK, len(data) // (8 * LANES) * LANES * 8
    if full:
        np.add.reduce(data[: full * CHUNK].view(np.uint64).reshape(full, ROWS, LANES), axis=1, out=lanes[:full])
    if full * CHUNK < whole:
        np.add.reduce(data[full * CHUNK : whole].view(np.uint64).reshape(-1, LANES), axis=0, out=lanes[full])
    if whole < len(data):
        rest = np.zeros(8 * LANES, np.uint8)
        rest[: len(data) - whole] = data[whole:]
        lanes[full] += rest.view(np.uint64)
