"""What a corruption does to stored words, many at once."""

from collections.abc import Sequence

import torch

from aftershock.faults import Add, Corruption, Flip, Replace, StuckAt
from aftershock.numerics import INT32, NumberFormat, words


def corrupt(old: torch.Tensor, corruptions: Sequence[Corruption], number_format: NumberFormat) -> torch.Tensor:
    """The corrupted words: `old` (1-D, words of the format), each under its own corruption.

    Flip, stuck-at and replace are one rule, ((old AND keep) OR force) XOR invert; only add reads the value.
    Sums are taken in fp64 and rounded as torch rounds: to fp32, then to the format.
    """
    masks = torch.tensor([_masks(corruption, number_format) for corruption in corruptions], dtype=torch.int64).to(
        device=old.device, dtype=old.dtype
    )
    new = ((old & masks[:, 0]) | masks[:, 1]) ^ masks[:, 2]
    adding = [number for number, corruption in enumerate(corruptions) if isinstance(corruption, Add)]
    if adding:
        # MPS has no fp64 and the sums are few: they are taken on the host.
        amounts = torch.tensor([c.amount for c in corruptions if isinstance(c, Add)], dtype=torch.float64)
        where = torch.tensor(adding, device=old.device)
        sums = old[where].view(number_format.dtype).cpu().to(torch.float64) + amounts
        # Integer sums wrap around, as they do in an accumulator.
        rounded = sums.to(torch.int64) if number_format == INT32 else sums
        new[where] = words(rounded.to(number_format.dtype)).to(old.device)
    return new


def _masks(corruption: Corruption, number_format: NumberFormat) -> tuple[int, int, int]:
    """(keep, force, invert) as signed integers of the word's width."""
    if isinstance(corruption, Flip):
        return -1, 0, _signed(sum(1 << bit for bit in corruption.bits), number_format)
    if isinstance(corruption, StuckAt):
        bits = sum(1 << bit for bit in corruption.bits)
        return _signed(~bits, number_format), _signed(bits, number_format) * corruption.level, 0
    if isinstance(corruption, Replace):
        return 0, int(words(torch.tensor(corruption.value, dtype=number_format.dtype))), 0
    return -1, 0, 0


def _signed(word: int, number_format: NumberFormat) -> int:
    word &= (1 << number_format.bits) - 1
    return word - (1 << number_format.bits) if word >> (number_format.bits - 1) else word
