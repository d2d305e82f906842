"""Tests of a number that comes with an interval, several such numbers taken together, several tests at once.

Every test reads the interval: the distance from the estimate to its bound on the side of the value asked about is taken
as that bound's normal quantile. So a test and the interval that is printed beside it never disagree, and an interval
that is right for rare events (exact, weighted, clustered) makes a test that is.
"""

from collections.abc import Sequence
from math import hypot

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from aftershock.errors import InputError
from aftershock.stats.estimates import Estimate, Floats, floats
from aftershock.stats.intervals import normal_quantile


def pooled(estimates: Sequence[Estimate], weights: npt.ArrayLike) -> Estimate:
    """The sum of weight x estimate over independent estimates, with its interval; `n` is the sum of theirs.

    `weights` has shape (estimates,) and any sign: shares that sum to 1 give a mean over strata, a contrast gives a
    slope. The bounds combine each estimate's distances to its own bounds (the square-and-add method for linear
    functions, Zou and Donner, Statistics in Medicine 2008). Raises InputError when lengths differ or nothing is given.
    """
    factors = floats(weights, "weights", dimensions=1)
    if factors.size != len(estimates):
        raise InputError(f"{factors.size} weights for {len(estimates)} estimates: give one each")
    total = float(sum(factor * one.estimate for factor, one in zip(factors, estimates, strict=True)))
    steps = [sorted((factor * (one.low - one.estimate), factor * (one.high - one.estimate)))
             for factor, one in zip(factors, estimates, strict=True)]  # fmt: skip
    down, up = hypot(*(min(step[0], 0.0) for step in steps)), hypot(*(max(step[1], 0.0) for step in steps))
    return Estimate(total, total - down, total + up, sum(one.n for one in estimates))


def p_above(found: Estimate, value: float = 0.0, confidence: float = 0.95) -> float:
    """One-sided p-value for the truth lying above `value`: small where the interval, which has this confidence, lies
    well above it."""
    distance = found.estimate - value
    if distance == 0:
        return 0.5
    width = found.estimate - found.low if distance > 0 else found.high - found.estimate
    if width <= 0:
        return 0.0 if distance > 0 else 1.0
    return float(ndtr(-distance / width * normal_quantile(confidence)))


def p_below(found: Estimate, value: float = 0.0, confidence: float = 0.95) -> float:
    """One-sided p-value for the truth lying below `value`; see `p_above`."""
    mirrored = Estimate(-found.estimate, -found.high, -found.low, found.n)
    return p_above(mirrored, -value, confidence)


def p_equivalent(found: Estimate, margin: float, confidence: float = 0.95) -> float:
    """P-value for the truth lying within -margin to margin: two one-sided tests (Schuirmann, J. Pharmacokinetics and
    Biopharmaceutics 1987). Raises InputError unless the margin is positive."""
    if not margin > 0:
        raise InputError(f"margin is {margin}: give the smallest difference that matters, above 0")
    return max(p_above(found, -margin, confidence), p_below(found, margin, confidence))


def holm(p_values: npt.ArrayLike) -> Floats:
    """Adjusted p-values, float64 of the same shape (tests,): those below a level may all be called significant at it
    with at most that chance of any mistake (Holm, Scandinavian J. of Statistics 1979).

    Raises InputError for an empty list or a p-value outside 0 to 1.
    """
    values = floats(p_values, "p_values", dimensions=1)
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError("p_values holds a number outside 0 to 1")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
