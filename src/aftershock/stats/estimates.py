"""What every function of this room gives back, and how arrays come in."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `n` independent units (faults, items, perturbations) went into it."""

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """How two studies differ: second minus first with its interval, and the chance of a difference at least as
    large (in either direction) if there were none."""

    difference: Estimate
    p_value: float


def floats(values: npt.ArrayLike, name: str, dimensions: int) -> Floats:
    """`values` as a float64 array. Raises InputError unless it has that many dimensions and some content."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}: give a non-empty array of {dimensions} dimension(s)")
    return array


def share_array(values: npt.ArrayLike, name: str) -> Floats:
    """Shares, float64 of shape (faults,), without the NaN that stand for faults with no eligible item.

    Raises InputError when a share lies outside 0 to 1 or none is left.
    """
    array = floats(values, name, dimensions=1)
    array = array[~np.isnan(array)]
    if array.size == 0:
        raise InputError(f"{name} holds no fault with an eligible item: run more trials or choose other items")
    if array.min() < 0 or array.max() > 1:
        raise InputError(f"{name} holds a share outside 0 to 1: divide successes by eligible items")
    return array


def check_fraction(value: float, name: str) -> None:
    """Raise InputError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}: give a number between 0 and 1, both excluded")
