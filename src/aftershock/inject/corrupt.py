"""What a corruption does to stored words, many at once."""

from collections.abc import Sequence

import numpy as np
import torch

from aftershock.faults import Add, Corruption, Drawn, Flip, Places, Replace, StuckAt, bits_of
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
        amounts = torch.tensor([c.amount for c in corruptions if isinstance(c, Add)], dtype=torch.float64)
        where = torch.tensor(adding, device=old.device)
        new[where] = _sums(old[where], amounts, number_format)
    return new


def corrupt_places(
    old: torch.Tensor, corruption: Corruption, places: Places, number_format: NumberFormat
) -> torch.Tensor:
    """The corrupted words: `old` (1-D, words of the format) at some places, under what was drawn for each."""
    match corruption:
        case Flip():
            return old ^ _on_words(places.masks, old)
        case StuckAt(_, level):
            masks = _on_words(places.masks, old)
            return old | masks if level else old & ~masks
        case Replace(value):
            return torch.full_like(old, _word(value, number_format))
        case Add(amount):
            return _sums(old, torch.tensor(amount, dtype=torch.float64), number_format)
        case Drawn(name):
            numbers = torch.from_numpy(places.numbers)
            numbers = numbers.round() if number_format == INT32 else numbers
            if name == "add":
                return _sums(old, numbers, number_format)
            return words(numbers.to(number_format.dtype)).to(old.device)


def _sums(old: torch.Tensor, amounts: torch.Tensor, number_format: NumberFormat) -> torch.Tensor:
    """Words of the sums of values and amounts."""
    # MPS has no fp64: they are taken on the host.
    sums = old.view(number_format.dtype).cpu().to(torch.float64) + amounts
    # Integer sums wrap around, as they do in an accumulator.
    rounded = sums.to(torch.int64) if number_format == INT32 else sums
    return words(rounded.to(number_format.dtype)).to(old.device)


def _on_words(masks: np.ndarray, old: torch.Tensor) -> torch.Tensor:
    """Masks as words of the width and on the device of others."""
    signed = masks if old.element_size() == masks.itemsize else masks.astype(f"u{old.element_size()}")
    return torch.from_numpy(signed.view(f"i{old.element_size()}")).to(old.device, non_blocking=True)


def _masks(corruption: Corruption, number_format: NumberFormat) -> tuple[int, int, int]:
    """(keep, force, invert) as signed integers of the word's width."""
    mask = sum(1 << bit for bit in bits_of(corruption))
    match corruption:
        case Flip():
            return -1, 0, _signed(mask, number_format)
        case StuckAt(_, level):
            return _signed(~mask, number_format), _signed(mask, number_format) * level, 0
        case Replace(value):
            return 0, _word(value, number_format), 0
        case _:
            return -1, 0, 0


def _word(value: float, number_format: NumberFormat) -> int:
    return int(words(torch.tensor(value, dtype=number_format.dtype)))


def _signed(word: int, number_format: NumberFormat) -> int:
    word &= (1 << number_format.bits) - 1
    return word - (1 << number_format.bits) if word >> (number_format.bits - 1) else word
