"""Find the bit from which on a flip does harm, with about log2 of the trials that trying every bit takes.

The flips of one value that move it in one direction, by growing change, are a ladder. If harm grows with the change,
the ladder's lower part is harmless and its upper part harmful, and a binary search finds where they meet (BinFI:
Chen, Li, Pattabiraman and DeBardeleben, SC 2019). That harm grows so is assumed, and tested: one more flip is probed
on either side of the boundary, drawn at random from those not tried yet, and a share of the values has every bit tried.

Everything here is a function of the plan's words and of the outcomes so far, so a search can be killed and resumed, and
its probes are trials like any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

from aftershock.faults import distinct
from aftershock.numerics import NumberFormat, generator

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Ladder:
    """The flips of value number `value` that raise it (or lower it), as bit positions by growing change."""

    value: int
    direction: Direction
    bits: tuple[int, ...]


@dataclass(frozen=True)
class Search:
    """How far the search on one ladder has come.

    `asked` are the bits whose outcome it used, in order. `boundary` is the place of the ladder's first harmful flip,
    its length where none does harm, None while that is open. `wanted` are the bits to be tried next; none when it is
    done. `contradictions` are verifying probes that came out on the wrong side.
    """

    asked: tuple[int, ...]
    boundary: int | None
    wanted: tuple[int, ...]
    contradictions: tuple[int, ...] = ()


def ladders(value: int, word: int, number_format: NumberFormat, bits: Sequence[int]) -> tuple[Ladder, Ladder]:
    """Both ladders of a value: of its flips at positions `bits`, those that raise it and those that lower it.

    `word` is the unsigned stored word. A flip that gives an infinity or NaN changes the value most of all, away from
    zero; one that changes nothing (the sign of zero) least of all, upwards.
    """
    old = torch.tensor(word).to(number_format.word)
    # int64 to the word's own width wraps, as the top bit must.
    masks = torch.tensor([1 << bit for bit in bits]).to(number_format.word)
    before = old.view(number_format.dtype).double()
    after = (old ^ masks).view(number_format.dtype).double()
    change = torch.where(after.isfinite(), after - before, torch.copysign(torch.full_like(after, torch.inf), before))
    order = sorted(zip(change.abs().tolist(), bits, (change >= 0).tolist(), strict=True))
    up = tuple(bit for _, bit, raised in order if raised)
    down = tuple(bit for _, bit, raised in order if not raised)
    return Ladder(value, "up", up), Ladder(value, "down", down)


def search(ladder: Ladder, harmful: Mapping[int, bool], seed: int) -> Search:
    """Where the search stands, given the outcomes known so far by bit; those it does not ask for play no part."""
    low, high = -1, len(ladder.bits)
    asked: list[int] = []
    while high - low > 1:
        middle = (low + high) // 2
        bit = ladder.bits[middle]
        if bit not in harmful:
            return Search(tuple(asked), None, (bit,))
        asked.append(bit)
        low, high = (low, middle) if harmful[bit] else (middle, high)
    checks = _verifying(ladder, high, asked, seed)
    known = [bit for bit in checks if bit in harmful]
    wrong = [bit for bit in known if harmful[bit] != (ladder.bits.index(bit) >= high)]
    wanted = tuple(bit for bit in checks if bit not in harmful)
    return Search((*asked, *known), high, wanted, tuple(wrong))


def _verifying(ladder: Ladder, boundary: int, asked: Sequence[int], seed: int) -> list[int]:
    """One bit not asked for yet on either side of the boundary, where there is one."""
    random = generator(seed, ladder.value, f"verify {ladder.direction}")
    sides = (ladder.bits[:boundary], ladder.bits[boundary:])
    untried = [[bit for bit in side if bit not in asked] for side in sides]
    return [side[random.integers(len(side))] for side in untried if side]


def exhaustive_values(values: int, share: float, seed: int) -> frozenset[int]:
    """The values of which every bit is tried: a random `share` of them, at least one unless the share is 0."""
    count = min(values, ceil(share * values))
    return frozenset(distinct(generator(seed, 0, "exhaustive values"), values, count).tolist())


def next_probes(
    steps: Sequence[tuple[Ladder, Ladder]],
    harmful: Mapping[int, Mapping[int, bool]],
    exhaustive: frozenset[int],
    seed: int,
) -> tuple[tuple[int, int], ...]:
    """The next round of probes, (value, bit) each; none when every search is done.

    `harmful[value][bit]` holds the outcomes so far. Both ladders of every value go on side by side.
    """
    wanted = []
    for pair in steps:
        for ladder in pair:
            known = harmful.get(ladder.value, {})
            if ladder.value in exhaustive:
                bits = tuple(bit for bit in ladder.bits if bit not in known)
            else:
                bits = search(ladder, known, seed).wanted
            wanted += [(ladder.value, bit) for bit in bits]
    return tuple(sorted(wanted))
