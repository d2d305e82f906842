"""Lower precisions that values may have been rounded to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

DIGITS = 52
"""Bits of the fraction of float64."""

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""The values as a lower precision has them, in their own type."""


@dataclass(frozen=True)
class Lower:
    """A precision by name. `digits` are the bits of its fraction, which tell whether it is lower than another."""

    name: str
    digits: int
    rounding: Rounding


def to(dtype: torch.dtype) -> Rounding:
    """Rounded to a type; what lies beyond its range is its largest value."""

    def rounding(values: torch.Tensor) -> torch.Tensor:
        largest = min(torch.finfo(dtype).max, torch.finfo(values.dtype).max)
        return values.clamp(-largest, largest).to(dtype).to(values.dtype)

    return rounding


def scaled(dtype: torch.dtype, channels: int | None) -> Rounding:
    """Rounded to a type after its largest value was scaled to that of the type: in groups of channels of a token, or
    over the whole tensor."""
    largest = torch.finfo(dtype).max

    def rounding(values: torch.Tensor) -> torch.Tensor:
        groups = values.reshape(len(values), -1, channels) if channels else values.reshape(1, 1, -1)
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest
        return ((groups / scale).to(dtype).to(values.dtype) * scale).reshape(values.shape)

    return rounding


def whole(bits: int, channels: int | None) -> Rounding:
    """Rounded to whole numbers of some bits, scaled symmetrically: in groups of channels of a token, or over the whole
    tensor."""
    largest = 2 ** (bits - 1) - 1

    def rounding(values: torch.Tensor) -> torch.Tensor:
        groups = values.reshape(len(values), -1, channels) if channels else values.reshape(1, 1, -1)
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest
        rounded: torch.Tensor = torch.round(groups / scale) * scale
        return rounded.reshape(values.shape)

    return rounding


TYPES = (
    Lower("float32", 23, to(torch.float32)),
    Lower("float16", 10, to(torch.float16)),
    Lower("bfloat16", 7, to(torch.bfloat16)),
    Lower("float8_e4m3", 3, to(torch.float8_e4m3fn)),
    Lower("float8_e5m2", 2, to(torch.float8_e5m2)),
)
"""Types without a scale."""


def grouped(sizes: Mapping[str, int | None]) -> tuple[Lower, ...]:
    """Types with a scale for each group of so many channels, by what a group is called (None: the whole tensor)."""
    return tuple(
        lower
        for name, channels in sizes.items()
        for lower in (
            Lower(f"int8, a scale a {name}", 7, whole(8, channels)),
            Lower(f"float8_e4m3, a scale a {name}", 3, scaled(torch.float8_e4m3fn, channels)),
            Lower(f"int4, a scale a {name}", 3, whole(4, channels)),
        )
    )


def lower_than(dtype: torch.dtype, precisions: tuple[Lower, ...]) -> tuple[Lower, ...]:
    """Those with fewer bits of fraction than a type."""
    name = str(dtype).removeprefix("torch.")
    digits = next((own.digits for own in TYPES if own.name == name), DIGITS)
    return tuple(own for own in precisions if own.digits < digits)
