"""What a fault did to a word, and the proof that it did."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aftershock.errors import ContractError
from aftershock.faults import Fault
from aftershock.inject.corrupt import corrupt
from aftershock.numerics import NumberFormat, format_of_words, words


@dataclass(frozen=True)
class Struck:
    """One word that a fault wrote: its fault's number, its place, and its bits (unsigned) and value before
    and after.

    `row` is the row of the block, None for a weight. `index` is the element of the stored tensor, (token, channel) of
    an activation, (token, head, channel) of a key, a value or a head's output, or (query, head, key) of a score or
    probability; tokens are counted from the row's first.
    """

    fault: int
    tensor: str
    index: tuple[int, ...]
    row: int | None
    old_bits: int
    new_bits: int
    old_value: float
    new_value: float


Change = tuple[int, int, float, float]
"""Old bits, new bits (unsigned), old value, new value."""


def strike(
    tensor: torch.Tensor, index: tuple[torch.Tensor, ...], faults: Sequence[Fault]
) -> tuple[torch.Tensor, list[Change]]:
    """Corrupt the elements `index` of a tensor, each by its own fault; the old words, and what changed.

    Raises ContractError when what is found there afterwards is not what was written.
    """
    stored, number_format = words(tensor), format_of_words(tensor.dtype)
    old = stored[index]
    new = corrupt(old, [fault.corruption for fault in faults], number_format)
    stored[index] = new
    if not torch.equal(stored[index], new):
        raise ContractError(f"'{faults[0]}' was armed but its word did not change")
    return old, _changes(old, new, number_format)


def _changes(old: torch.Tensor, new: torch.Tensor, number_format: NumberFormat) -> list[Change]:
    mask = (1 << number_format.bits) - 1
    old_bits, new_bits = ([word & mask for word in changed.tolist()] for changed in (old, new))
    old_values, new_values = (changed.view(number_format.dtype).to(torch.float64).tolist() for changed in (old, new))
    return list(zip(old_bits, new_bits, old_values, new_values, strict=True))
