"""Check words beside parameters that correct any single flipped bit of a code word and see any two: SEC-DED.

Memory is cut into blocks of 64 words of 64 bits and 8 check words are kept of each, 12.5 %, as ECC memory keeps 8
check bits of 64. The code is Hsiao's (IBM J. Res. Dev. 14, 1970): data bit j adds its column, an 8-bit number of odd
weight, to the check bits, so a single error leaves its own column as the syndrome, and two errors one of even weight. A
code word takes one bit out of each word of its block, not all bits of one: check words are then plain XORs of words,
and a word of which many bits are wrong has one wrong bit in each of 64 code words, all of which are corrected.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from aftershock.numerics import words
from aftershock.protect.memory import parameters_named
from aftershock.protect.tally import Event, Site, Tally

DATA, CHECKS = 64, 8
"""Words of a block, and check words of it."""

_BLOCK_BYTES = DATA * 8


def _columns() -> tuple[int, ...]:
    """Which check bits each data bit adds to, as bits of a number: all 56 numbers of weight 3, then 8 of weight 5."""
    threes, fives = (
        [sum(1 << bit for bit in bits) for bits in combinations(range(CHECKS), weight)] for weight in (3, 5)
    )
    # Of weight 5 those that load all check bits alike: a pattern and its rotations.
    pattern = fives[0]
    rotated = [((pattern << turn) | (pattern >> (CHECKS - turn))) & 0xFF for turn in range(CHECKS)]
    return (*threes, *rotated)


COLUMNS = _columns()


def check_words(blocks: torch.Tensor) -> torch.Tensor:
    """Check words of blocks, int64 of shape (64, n): int64, shape (8, n). Word i of a block is `blocks[i, b]`."""
    found = blocks.new_zeros(CHECKS, blocks.shape[1])
    for word, column in zip(blocks, COLUMNS, strict=True):
        for check in range(CHECKS):
            if column >> check & 1:
                found[check].bitwise_xor_(word)
    return found


def correct(blocks: torch.Tensor, checks: torch.Tensor) -> tuple[int, bool]:
    """Put flipped bits of blocks, int64 (64, n), and of their check words, int64 (8, n), right in place.

    Gives how many 64-bit words that were, and whether all that is wrong was put right: False where a code word has two
    errors. Waits for the device.
    """
    syndromes = check_words(blocks) ^ checks
    wrong = (syndromes != 0).any(0).nonzero()[:, 0]
    if not len(wrong):
        return 0, True
    found = syndromes[:, wrong]
    left = found[0].clone()
    for check in range(1, CHECKS):
        left |= found[check]
    corrected = 0
    places = [(blocks, word, column) for word, column in enumerate(COLUMNS)]
    places += [(checks, check, 1 << check) for check in range(CHECKS)]
    for kept, row, column in places:
        # In which of its 64 code words the error lies at this place.
        lanes = torch.full_like(left, -1)
        for check in range(CHECKS):
            lanes &= found[check] if column >> check & 1 else ~found[check]
        kept[row, wrong] ^= lanes
        left &= ~lanes
        corrected += int((lanes != 0).sum())
    return corrected, not bool(left.any())


class CorrectingWords:
    """Check words of parameters as they are now, by which flipped bits are put right before each pass."""

    def __init__(self, module: torch.nn.Module, parameters: Sequence[str], events: list[Event]) -> None:
        """Raises InputError for a name that is none."""
        self._events = events
        self._names = tuple(parameters)
        raw = [words(one.detach()).view(-1).view(torch.uint8) for one in parameters_named(module, parameters)]
        whole = [len(one) // _BLOCK_BYTES * _BLOCK_BYTES for one in raw]
        # Word i of block b lies n words after word i - 1 of it: rows are long, and nothing is copied.
        self._blocks = [one[:end].view(torch.int64).view(DATA, -1) for one, end in zip(raw, whole, strict=True)]
        self._checks = [check_words(one) for one in self._blocks]
        # What fills no block, below 512 bytes, is copied.
        self._ends = [(one[end:], one[end:].clone()) for one, end in zip(raw, whole, strict=True)]
        self.tallies = tuple(
            Tally(Site(name, "parameter", None), "Ecc", one.device)
            for name, one in zip(parameters, self._blocks, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Memory of the check words."""
        return sum(one.nbytes for one in self._checks) + sum(copy.nbytes for _, copy in self._ends)

    def before_pass(self, *_: Any) -> None:
        """As a forward pre-hook of the model."""
        self.mend()

    @torch.no_grad()
    def mend(self) -> bool:
        """Correct what can be; whether anything was wrong, and all of it is right now."""
        found = [self._mended(number) for number in range(len(self._names))]
        return any(count for count, _ in found) and all(right for _, right in found)

    def _mended(self, number: int) -> tuple[int, bool]:
        own, copy = self._ends[number]
        at_end = int((own != copy).any())
        own.copy_(copy)
        corrected, right = correct(self._blocks[number], self._checks[number])
        count = corrected + at_end
        self.tallies[number].see(torch.tensor([count > 0]))
        if count or not right:
            site = Site(self._names[number], "parameter", None)
            self._events.append(Event(site, "Ecc", count, "recover", right))
        return count, right
