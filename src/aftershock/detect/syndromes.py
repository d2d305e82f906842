"""Syndromes of a tensor's bytes: a Reed-Solomon-like code over GF(2^31 - 1) that corrects a few bad words a block.

The bytes, filled up with a zero to whole 16-bit words, are cut into nearly equal blocks. Word w_j at place j of a block
adds (j + 1)^k w_j to the block's syndrome k = 0 .. 2t - 1. A change of up to t words of a block has syndromes that no
other change of up to t words has: two such would differ in at most 2t words, and the 2t x 2t Vandermonde matrix of
their places, which are distinct and smaller than the prime, is not singular. For the same reason any change of up to
2t words of a block is seen.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch

from aftershock.models import ModelWords, TensorWords

PRIME = 2**31 - 1
"""Modulus of the syndromes."""

_MOST = 32
"""Words of a block that can be corrected: a burst of 64 bytes."""

_BLOCK_BYTES = 196_608
"""A block has at least so many bytes, where its tensor has, and less than twice as many."""

_RUN = 4096
"""Words of a block that are summed by one matrix of powers."""

_AT_ONCE = 1 << 19
"""Words that are held as 64-bit numbers at one time, or one block."""


@dataclass(frozen=True)
class Syndromes:
    """`values[b, k]` is syndrome k of block b: int64 in [0, 2^31 - 1), shape (blocks, 2t)."""

    values: torch.Tensor


def correctable(tensor: TensorWords) -> int:
    """Number t of bad 16-bit words that can be corrected in each block of a tensor: 32, or in a tensor below 1 KiB so
    many that the syndromes are a quarter of its bytes, but at least one."""
    return min(_MOST, max(1, tensor.size // 32))


def blocks_of(tensor: TensorWords) -> torch.Tensor:
    """First 16-bit word of each block, and the end: int64, shape (blocks + 1,)."""
    count, blocks = -(-tensor.size // 2), max(1, tensor.size // _BLOCK_BYTES)
    return torch.arange(blocks + 1, dtype=torch.int64) * count // blocks


def syndromes(words: ModelWords, tensor: TensorWords) -> Syndromes:
    """Syndromes of all blocks of a tensor, some blocks at a time, computed where the words are, given on the CPU.

    Raises InputError where the words can't be read.
    """
    bounds, count = blocks_of(tensor).tolist(), 2 * correctable(tensor)
    longest = max(end - begin for begin, end in pairwise(bounds))
    run = min(_RUN, max(1, longest))
    runs = -(-longest // run)
    pairs = replace(tensor, rows=bounds[-1], columns=2, width=1)
    step = max(1, _AT_ONCE // max(1, longest))
    found = []
    for first in range(0, len(bounds) - 1, step):
        some = bounds[first : first + step + 1]
        held = _unsigned(words.read(pairs, some[0], some[-1]))
        blocks = held.new_zeros(len(some) - 1, runs * run, dtype=torch.float64)
        for block, (begin, end) in zip(blocks, pairwise(some), strict=True):
            block[: end - begin] = held[begin - some[0] : end - some[0]]
        found.append(_power_sums(blocks.view(len(blocks), runs, run), count).cpu())
    return Syndromes(torch.cat(found))


def _unsigned(pairs: torch.Tensor) -> torch.Tensor:
    """16-bit words of pairs of bytes, int8 of shape (n, 2), as uint16 of shape (n,)."""
    aligned = pairs if pairs.storage_offset() % 2 == 0 else pairs.clone()
    return aligned.view(torch.uint16).flatten()


def _power_sums(blocks: torch.Tensor, count: int) -> torch.Tensor:
    """Syndromes 0 .. count - 1 of blocks of words, float64 of shape (blocks, runs, words a run): int64 (blocks, count).

    Each run is summed about its own beginning, y being a word's place in it and x the run's in the block, and moved
    there by (x + y)^k = sum over i of C(k, i) x^(k - i) y^i. So one small matrix of powers serves all runs.
    """
    _, runs, run = blocks.shape
    powers, moves = _tables(runs, run, count, blocks.device)
    local = _product(blocks.flatten(0, 1), powers).view(len(blocks), -1)
    low, high = (_product(half.double(), moves) for half in (local & 0xFFFF, local >> 16))
    return (low + high * 65536) % PRIME


@lru_cache(maxsize=4)  # the tensors of a model have few shapes
def _tables(runs: int, run: int, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers of the places in a run, (run, count), and what moves each run's sums, (runs x count, count): in halves."""
    order = torch.arange(count, device=device)
    lower = (order[None, :] - order[:, None]).clamp_min(0)
    places, begins = torch.arange(1, run + 1, device=device), torch.arange(runs, device=device) * run
    moves = _powers(begins, count)[:, lower] * _binomials(count).to(device) % PRIME
    return _halves(_powers(places, count)), _halves(moves.flatten(0, 1))


def _powers(bases: torch.Tensor, count: int) -> torch.Tensor:
    """Powers 0 .. count - 1 modulo the prime: int64, shape (bases, count)."""
    columns = [torch.ones_like(bases)]
    for _ in range(1, count):
        columns.append(columns[-1] * bases % PRIME)
    return torch.stack(columns, 1)


def _binomials(count: int) -> torch.Tensor:
    """C(k, i) modulo the prime at [i, k]: int64, shape (count, count)."""
    table = torch.zeros(count, count, dtype=torch.int64)
    table[0] = 1
    for k in range(1, count):
        table[1:, k] = (table[1:, k - 1] + table[:-1, k - 1]) % PRIME
    return table


def _halves(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers below 2^31 as float64, first the lower 16 bits of all columns, then the upper: (n, q) to (n, 2q)."""
    return torch.cat([numbers & 0xFFFF, numbers >> 16], 1).double()


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix product modulo the prime: whole numbers below 2^16, float64 (m, n), with halves (n, 2q) to int64 (m, q).

    n is at most 4096 words or 48 runs x 64 syndromes: all sums stay below 2^53, where float64 is exact.
    """
    low, high = (left @ right).to(torch.int64).remainder(PRIME).chunk(2, 1)
    return (low + high * 65536) % PRIME
