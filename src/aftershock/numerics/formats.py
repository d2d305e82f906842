"""Number formats: where sign, exponent and mantissa lie in the words that memory holds.

Bits are numbered from the least significant, 0, as in IEEE 754 and in the fault-injection literature
("bit 14 of fp16" is the top exponent bit).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from aftershock.errors import InputError

BitClass = Literal["sign", "exponent", "mantissa"]
BIT_CLASSES: tuple[BitClass, ...] = get_args(BitClass)


@dataclass(frozen=True)
class NumberFormat:
    """A floating-point storage format.

    `dtype` is the torch type of the values, `word` the integer type of the same width through which the
    stored bits are read and written.
    """

    name: str
    dtype: torch.dtype
    word: torch.dtype
    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        """Width of a stored word."""
        return 1 + self.exponent_bits + self.mantissa_bits

    def bit_class(self, bit: int) -> BitClass:
        """Class of one bit position. Raises InputError when the word has no such bit."""
        self.check_bit(bit)
        if bit < self.mantissa_bits:
            return "mantissa"
        return "exponent" if bit < self.bits - 1 else "sign"

    def bits_of(self, bit_class: BitClass) -> range:
        """Bit positions of one class, ascending."""
        return {
            "mantissa": range(self.mantissa_bits),
            "exponent": range(self.mantissa_bits, self.bits - 1),
            "sign": range(self.bits - 1, self.bits),
        }[bit_class]

    def check_bit(self, bit: int) -> None:
        """Raise InputError unless `bit` is a position of this format's word."""
        if not 0 <= bit < self.bits:
            raise InputError(
                f"bit {bit} is outside {self.name}, whose words have bits 0 to {self.bits - 1}: "
                "choose a bit in that range or another dtype"
            )


FORMATS: tuple[NumberFormat, ...] = (
    NumberFormat("float32", torch.float32, torch.int32, exponent_bits=8, mantissa_bits=23),
    NumberFormat("float16", torch.float16, torch.int16, exponent_bits=5, mantissa_bits=10),
    NumberFormat("bfloat16", torch.bfloat16, torch.int16, exponent_bits=8, mantissa_bits=7),
)

INT32 = NumberFormat("int32", torch.int32, torch.int32, exponent_bits=0, mantissa_bits=31)
"""Sums of integer products, in two's complement; no format of models."""

_ALIASES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def format_of(dtype: torch.dtype | str) -> NumberFormat:
    """The format of a torch dtype or of its name (`float32`, `fp32`, `bf16`, ...).

    Raises InputError for a type aftershock does not put faults into.
    """
    name = str(dtype).removeprefix("torch.")
    name = _ALIASES.get(name, name)
    for number_format in FORMATS:
        if number_format.name == name:
            return number_format
    supported = ", ".join(number_format.name for number_format in FORMATS)
    raise InputError(f"dtype {name!r} is not supported: choose one of {supported}")


def format_of_words(dtype: torch.dtype) -> NumberFormat:
    """The format of what a tensor holds, int32 sums included. Raises InputError as `format_of` does."""
    return INT32 if dtype == torch.int32 else format_of(dtype)


def words(tensor: torch.Tensor) -> torch.Tensor:
    """The stored words of a tensor as integers: a view of the same shape that shares its memory.

    Comparing words instead of values makes NaN equal to itself and tells 0.0 from -0.0. float64 has words too, but
    no format here: no fault is put into it.
    """
    return tensor.view(torch.int64 if tensor.dtype == torch.float64 else format_of_words(tensor.dtype).word)
