"""Guards by range: values beyond what was seen before are wrong, or are brought back.

Bounds come from clean runs offline (Ranger: Chen, Li and Pattabiraman, DSN 2021), or from the first token of the same
run, stretched (FT2: HPDC 2025, by 2).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bounds:
    """Least and largest value, fp32 (float64 for such values), of a shape that broadcasts with values: 0-d, or one for
    each channel."""

    lowest: torch.Tensor
    highest: torch.Tensor

    def joined(self, other: "Bounds") -> "Bounds":
        """What both hold."""
        return Bounds(torch.minimum(self.lowest, other.lowest), torch.maximum(self.highest, other.highest))

    def stretched(self, factor: float) -> "Bounds":
        """Further from each other by `factor`, 1 or more: a bound on its own side of 0 is multiplied (as FT2 does), one
        on the other side divided."""
        lowest, highest = self.lowest, self.highest
        return Bounds(
            torch.where(lowest < 0, lowest * factor, lowest / factor),
            torch.where(highest > 0, highest * factor, highest / factor),
        )


def dtype_of_bounds(dtype: torch.dtype) -> torch.dtype:
    """The dtype of bounds of values of `dtype`: fp32, or theirs where it is wider."""
    return torch.promote_types(dtype, torch.float32)


def bounds_of(values: torch.Tensor) -> Bounds:
    """Bounds of all `values`, of any shape; values that are not finite are left out. Without any finite value nothing
    is within: (inf, -inf)."""
    finite, known = values.to(dtype_of_bounds(values.dtype)), values.isfinite()
    return Bounds(
        torch.where(known, finite, torch.inf).amin(),
        torch.where(known, finite, -torch.inf).amax(),
    )


def bounds_by_channel(values: torch.Tensor) -> Bounds:
    """The same for each of the last dimension's channels: from shape (..., channels) to (channels,)."""
    rows = values.flatten(0, -2).to(dtype_of_bounds(values.dtype))
    known = rows.isfinite()
    return Bounds(
        torch.where(known, rows, torch.inf).amin(0),
        torch.where(known, rows, -torch.inf).amax(0),
    )


def outside(values: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Bool, of `values`' shape: beyond the bounds, or NaN."""
    return ~((values >= bounds.lowest) & (values <= bounds.highest))


def clamped(values: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """`values` brought into the bounds, in their dtype; NaN becomes 0 (as in FT2), or the bound closest to it.

    Bounds are rounded to the values' dtype: those that were seen in it stay as they are.
    """
    lowest, highest = bounds.lowest.to(values.dtype), bounds.highest.to(values.dtype)
    return torch.where(values.isnan(), torch.zeros_like(values), values).clamp(lowest, highest)


def not_finite(values: torch.Tensor) -> torch.Tensor:
    """Bool, from shape (..., N) to (...): some value of a row is NaN or infinite."""
    return ~values.isfinite().all(-1)
