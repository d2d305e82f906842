"""What a fault did to a word, and the proof that it did."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aftershock.errors import ContractError
from aftershock.faults import Fault
from aftershock.inject.corrupt import corrupt
from aftershock.numerics import NumberFormat, format_of_words, words

KEPT = 64
"""Words of a set that are kept one by one."""

Index = tuple[torch.Tensor, ...]
"""Where elements of a tensor lie, one int64 tensor for each dimension."""


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


@dataclass(frozen=True)
class StruckSet:
    """The words that a fault wrote at once where it strikes many: those of a scattered set in a parameter, or in an
    output in one forward call. There are `count` of them, `first` are the first few, and `digest` is the SHA-256 of all
    their places (int64), old words and new words.
    """

    fault: int
    tensor: str
    count: int
    digest: str
    first: tuple[Struck, ...]


Change = tuple[int, int, float, float]
"""Old bits, new bits (unsigned), old value, new value."""


def strike(tensor: torch.Tensor, index: Index, faults: Sequence[Fault]) -> tuple[torch.Tensor, list[Change]]:
    """Corrupt the elements `index` of a tensor, each by its own fault; the old words, and what changed.

    Raises ContractError when what is found there afterwards is not what was written.
    """
    number_format = format_of_words(tensor.dtype)
    old = words(tensor)[index]
    new = corrupt(old, [fault.corruption for fault in faults], number_format)
    write(tensor, index, new, faults[0])
    return old, changes(old, new, number_format)


def write(tensor: torch.Tensor, index: Index, new: torch.Tensor, fault: Fault) -> None:
    """Put words in the place of the elements `index`. Raises ContractError when they are not found there then."""
    stored = words(tensor)
    stored[index] = new
    if not torch.equal(stored[index], new):
        raise ContractError(f"'{fault}' was armed but its word did not change")


def changes(old: torch.Tensor, new: torch.Tensor, number_format: NumberFormat) -> list[Change]:
    """What became of words."""
    mask = (1 << number_format.bits) - 1
    old_bits, new_bits = ([word & mask for word in changed.tolist()] for changed in (old, new))
    old_values, new_values = (changed.view(number_format.dtype).to(torch.float64).tolist() for changed in (old, new))
    return list(zip(old_bits, new_bits, old_values, new_values, strict=True))


def digest_of(places: Sequence[torch.Tensor], old: torch.Tensor, new: torch.Tensor) -> str:
    """SHA-256 of the places (each of shape (n,), int64) and of the words before and after."""
    digest = hashlib.sha256()
    for part in (*places, old, new):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()
