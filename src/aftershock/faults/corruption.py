"""What happens to a value that a fault strikes."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from aftershock.errors import InputError


@dataclass(frozen=True)
class Flip:
    """Invert the bits given (ascending positions, 0 the least significant)."""

    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    def __str__(self) -> str:
        return f"flip {_bits_text(self.bits)}"


@dataclass(frozen=True)
class StuckAt:
    """Force the bits given (ascending) to `level`; a bit that has it already stays as it is."""

    bits: tuple[int, ...]
    level: Literal[0, 1]

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    def __str__(self) -> str:
        return f"stuck-at-{self.level} {_bits_text(self.bits)}"


@dataclass(frozen=True)
class Replace:
    """Put a value (rounded to the format that holds it) in place of the old one."""

    value: float

    def __post_init__(self) -> None:
        _one_nan(self, "value", self.value)

    def __reduce__(self) -> tuple[type["Replace"], tuple[float]]:
        return Replace, (self.value,)

    def __str__(self) -> str:
        return f"replace {self.value!r}"


@dataclass(frozen=True)
class Add:
    """Add an amount to the old value, in fp64, and round to the format that holds it."""

    amount: float

    def __post_init__(self) -> None:
        _one_nan(self, "amount", self.amount)

    def __reduce__(self) -> tuple[type["Add"], tuple[float]]:
        return Add, (self.amount,)

    def __str__(self) -> str:
        return f"add {self.amount!r}"


@dataclass(frozen=True)
class Drawn:
    """Replace a value by a number, or add one to it, that is drawn anew for each value from uniform [low, high); of a
    scattered set only. Numbers of int32 sums are rounded to whole ones. Raises InputError for an interval without
    numbers."""

    name: Literal["replace", "add"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high - self.low) and self.low < self.high):
            raise InputError(f"uniform[{self.low},{self.high}] holds no numbers: give two finite ones, ascending")

    def __str__(self) -> str:
        return f"{self.name} uniform[{self.low!r},{self.high!r}]"


Corruption = Flip | StuckAt | Replace | Add | Drawn


def bits_of(corruption: Corruption) -> tuple[int, ...]:
    """The bits that it strikes; none for one that changes the whole value."""
    return corruption.bits if isinstance(corruption, Flip | StuckAt) else ()


def _bits_text(bits: tuple[int, ...]) -> str:
    """`3,14`; three neighbours and more as `0-15`."""
    runs: list[list[int]] = []
    for bit in bits:
        if runs and bit == runs[-1][-1] + 1:
            runs[-1].append(bit)
        else:
            runs.append([bit])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _check_bits(bits: tuple[int, ...]) -> None:
    if not bits or bits[0] < 0 or any(low >= high for low, high in pairwise(bits)):
        raise InputError(f"bits {list(bits)} can't be struck: give one or more, each once, ascending from 0")


def _one_nan(value: object, field: str, number: float) -> None:
    # Two NaN objects are unequal; one shared object lets a parsed fault, and a pickled one, equal the original.
    if math.isnan(number):
        object.__setattr__(value, field, math.nan)
