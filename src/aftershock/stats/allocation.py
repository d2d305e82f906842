"""Where to spend trials: how many faults in each stratum, how many items for each fault."""

from math import sqrt

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.stats.estimates import Floats, check_fraction, floats
from aftershock.stats.weighted import Design, Ints

FLOOR = 0.5
"""Part of the trials that is always spread in proportion to the strata."""

FIRST_GUESS = 0.05
"""Rate that is assumed, as if one fault had shown it, before any is seen."""

_BORROWED = 2.0
"""Faults of the average stratum that each stratum is credited with before its own spread is believed."""


def stratum_variances(shares: npt.ArrayLike, design: Design) -> Floats:
    """Variance of the shares within each stratum, float64 of shape (strata,), all positive.

    `shares` has shape (faults,), which may be 0; NaN is left out. Few faults of a stratum tell little, so each stratum
    is credited with two faults that vary as the whole population would if every fault failed all of its items or none.
    """
    values = np.asarray(shares, dtype=np.float64)
    known = ~np.isnan(values)
    filled, strata = np.where(known, values, 0.0), design.strata
    size = design.chances.size
    weights = np.where(known, design.weights, 0.0)
    rate = (weights @ filled + FIRST_GUESS) / (weights.sum() + 1)
    counts = np.bincount(strata, known, minlength=size)
    sums, squares = np.bincount(strata, filled, minlength=size), np.bincount(strata, filled**2, minlength=size)
    about_mean = (squares - sums**2 / np.maximum(counts, 1)).clip(min=0)
    return np.asarray((about_mean + _BORROWED * rate * (1 - rate)) / (counts + _BORROWED))


def neyman_allocation(chances: npt.ArrayLike, spreads: npt.ArrayLike, trials: int, floor: float = FLOOR) -> Ints:
    """Trials for each stratum, int64 of shape (strata,), that sum to `trials`, at least one each.

    A share `floor` goes in proportion to the strata's chances W_h, the rest in proportion to W_h s_h, which gives the
    smallest variance of sum W_h p_h when the spreads s_h are right (Neyman, J. Royal Statistical Society 1934). The
    proportional part bounds every weight by 1 / floor, whatever the pilot missed (a defensive mixture, Hesterberg,
    Technometrics 1995). Both arrays have shape (strata,). Raises InputError for fewer trials than strata, a chance that
    is not positive, a negative spread or a floor outside (0, 1).
    """
    sizes, scales = floats(chances, "chances", dimensions=1), floats(spreads, "spreads", dimensions=1)
    check_fraction(floor, "floor")
    if sizes.shape != scales.shape or not sizes.min() > 0 or not scales.min() >= 0:
        raise InputError("strata need one chance > 0 and one spread >= 0 each")
    if trials < sizes.size:
        raise InputError(f"{trials} trials for {sizes.size} strata: give at least one for each")
    sizes = sizes / sizes.sum()
    # Of the largest spread, which may be too small for a sum of products.
    best = sizes * (scales / scales.max()) if scales.any() else sizes
    wanted = trials * (floor * sizes + (1 - floor) * best / best.sum())
    return _whole(wanted, trials)


def _whole(wanted: Floats, total: int) -> Ints:
    """Whole numbers of at least one that sum to `total`, near `wanted`: largest remainders over what is left."""
    above = (wanted - 1).clip(min=0)
    free = total - wanted.size
    shares = free * (above / above.sum()) if free else np.zeros_like(above)
    numbers = np.floor(shares).astype(np.int64)
    left = free - int(numbers.sum())
    numbers[np.argsort(numbers - shares, kind="stable")[:left]] += 1
    return np.asarray(numbers + 1)


def items_per_fault(correlation: float, fault_cost: float, item_cost: float) -> float:
    """Items that each fault should see for the narrowest interval in a given time, at least 1.

    sqrt((c_fault / c_item) (1 - rho) / rho): two-stage sampling with the cost c_fault of one more fault, c_item of one
    more item under it, in the same unit, and intra-fault correlation rho (Cochran, Sampling Techniques, 1977, section
    10.6). Infinite where items share nothing of their fault's fate. Raises InputError for a correlation outside [0, 1]
    or a cost that is not positive.
    """
    if not 0 <= correlation <= 1 or not fault_cost > 0 or not item_cost > 0:
        raise InputError("give a correlation from 0 to 1 and two costs above 0")
    if correlation == 0:
        return float("inf")
    return max(1.0, sqrt(fault_cost / item_cost * (1 - correlation) / correlation))
