"""What the exponent and mantissa fields of stored values hold."""

import torch

from aftershock.numerics.formats import format_of, words

_PART = 2**22
"""Values looked at in one go, which bounds the memory taken."""


def field_counts(values: torch.Tensor) -> torch.Tensor:
    """How many values have z zeros in the exponent field and j ones in the mantissa: int64, shape (exponent bits + 1,
    mantissa bits + 1), entry [z, j], on the values' device. Any shape and device; a NaN is a value like any other.
    Raises InputError for a dtype without a `NumberFormat`.
    """
    form = format_of(values.dtype)
    shape = (form.exponent_bits + 1, form.mantissa_bits + 1)
    counts = torch.zeros(shape[0] * shape[1], dtype=torch.int64, device=values.device)
    for part in torch.split(words(values.detach().reshape(-1)), _PART):
        zeros = form.exponent_bits - _ones(part, form.bits_of("exponent"))
        counts += torch.bincount(zeros * shape[1] + _ones(part, form.bits_of("mantissa")), minlength=counts.numel())
    return counts.reshape(shape)


def _ones(stored: torch.Tensor, bits: range) -> torch.Tensor:
    """How many of some bits are set in each word, int32: pairs of bits are added up side by side, then fours, then
    bytes (Warren, Hacker's Delight, section 5-1)."""
    found = (stored.int() >> bits.start) & ((1 << len(bits)) - 1)
    found = found - ((found >> 1) & 0x55555555)
    found = (found & 0x33333333) + ((found >> 2) & 0x33333333)
    found = (found + (found >> 4)) & 0x0F0F0F0F
    return (found + (found >> 8) + (found >> 16) + (found >> 24)) & 0xFF
