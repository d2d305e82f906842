"""Rates over faults that each saw several items.

Items under one fault share its fate, so they are not independent: the fault is the unit. A fault's share is its
successes over its eligible items; the rate is the mean of the shares, each fault weighing the same.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.stats.estimates import Estimate, Floats, floats, share_array
from aftershock.stats.intervals import exact_bounds, wilson, wilson_bounds

Label = TypeVar("Label", bound=Hashable)

_RARE = 0.02
"""Rates for which a score interval is no longer trusted and the exact one takes over."""

_SHRINKAGE = 1.75
"""How strongly few informative faults pull the design effect towards 1; chosen by the coverage simulation."""


def fault_shares(successes: npt.ArrayLike, items: npt.ArrayLike) -> Floats:
    """Share of successes of each fault, float64 of shape (faults,); NaN where a fault had no eligible item.

    `successes` and `items` are counts of shape (faults,). Raises InputError unless 0 <= successes <= items.
    """
    hits, sizes = _counts(successes, items)
    shares = np.full(sizes.shape, np.nan)
    np.divide(hits, sizes, out=shares, where=sizes > 0)
    return shares


def cluster_interval(shares: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over faults of the share of successes, with an interval whose unit is the fault.

    `shares` has shape (faults,), values in [0, 1]; NaN marks a fault without eligible items and is left out.
    The spread of the shares gives an effective number of independent all-or-nothing faults,
    n_eff = p (1 - p) / var(mean), at least the number of faults. The interval is Wilson's at n_eff; where that
    reaches rates below 2 % (or above 98 %) it is the exact one at n_eff (Korn and Graubard, Survey
    Methodology 1998), which does not undercover rare events. A spread seen through few faults that are neither
    all masked nor all failed is too small more often than not, so log(n_eff / n) is multiplied by 1 - 1.75/k, k the
    number of faults that show the rarer outcome. Coverage is held by simulation in the tests.

    Raises InputError when no fault is left, a share lies outside [0, 1] or confidence outside (0, 1).
    """
    values = share_array(shares, "shares")
    rate = float(values.mean())
    n = effective_faults(values)
    low, high = wilson_bounds(rate, n, confidence)
    if low <= _RARE or high >= 1 - _RARE:
        low, high = exact_bounds(rate, n, confidence)
    return Estimate(rate, low, high, values.size)


def effective_faults(shares: Floats) -> float:
    """Number of independent all-or-nothing faults that would know the mean share as well as these do (see
    `cluster_interval`). `shares` is float64 of shape (faults,) in [0, 1], without NaN."""
    rate = shares.mean()
    informative = min(np.count_nonzero(shares > 0), np.count_nonzero(shares < 1))
    if informative <= _SHRINKAGE:
        return float(shares.size)
    # At most 1, and 1 exactly when every fault is all or nothing. A few equal shares prove no precision: n faults
    # are not believed to vary less than 1/n of that.
    relative_variance = np.clip(shares.var() / (rate * (1 - rate)), 1 / shares.size, 1.0)
    return float(shares.size * relative_variance ** -(1 - _SHRINKAGE / informative))


def any_rate(shares: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Share of the faults that had any success at all, with its Wilson interval. `shares` as for
    `cluster_interval`; the more items a fault sees, the larger this rate, so compare only studies alike in that."""
    values = share_array(shares, "shares")
    return wilson(int(np.count_nonzero(values > 0)), values.size, confidence)


def by_label(labels: Sequence[Label], shares: npt.ArrayLike, confidence: float = 0.95) -> dict[Label, Estimate]:
    """`cluster_interval` of the faults of each label, in order of first appearance.

    `labels[j]` belongs to `shares[j]`, shape (faults,). Labels whose faults all lack eligible items (NaN) are left
    out. No labels give an empty dict. Raises InputError when the lengths differ or a share is outside [0, 1].
    """
    values = np.asarray(shares, dtype=np.float64)
    if values.shape != (len(labels),):
        raise InputError(f"{len(labels)} labels for shares of shape {values.shape}: give one label per fault")
    members: dict[Label, list[int]] = {}
    for position in np.flatnonzero(~np.isnan(values)).tolist():
        members.setdefault(labels[position], []).append(position)
    return {label: cluster_interval(values[positions], confidence) for label, positions in members.items()}


@dataclass(frozen=True)
class Clustering:
    """How far items under one fault share its fate.

    `intracluster_correlation` in [0, 1]: 0 items are independent, 1 a fault fails all of its items or none.
    `design_effect` >= 1: how many times more variable a rate is than if all items were independent.
    `effective_items`: independent items that would be worth as much as these (items / design_effect).
    """

    faults: int
    items: int
    intracluster_correlation: float
    design_effect: float
    effective_items: float


def clustering(successes: npt.ArrayLike, items: npt.ArrayLike) -> Clustering:
    """Intra-cluster correlation, design effect and effective number of items.

    `successes` and `items` are counts of shape (faults,); faults without items are left out. The correlation is the
    one-way analysis-of-variance estimator (Ridout, Demetrio and Firth, Biometrics 1999),
    (MSB - MSW) / (MSB + (m0 - 1) MSW), cut to [0, 1]; where outcomes do not vary, or no fault has two items, it
    can't be told and is taken as 1. The design effect is 1 + (m_a - 1) rho with m_a = sum m^2 / sum m (Kish, Survey
    Sampling, 1965). Raises InputError for impossible counts or when no fault has an item.
    """
    hits, sizes = _counts(successes, items)
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    if sizes.size == 0:
        raise InputError("no fault has an eligible item: run more trials or choose other items")
    faults, total = sizes.size, sizes.sum()
    rate = hits.sum() / total
    between = float((sizes * (hits / sizes - rate) ** 2).sum())
    within = float((hits * (1 - hits / sizes)).sum())
    average = float((sizes**2).sum() / total)
    correlation = 1.0
    if faults > 1 and total > faults and between + within > 0:
        mean_between, mean_within = between / (faults - 1), within / (total - faults)
        typical = (total - average) / (faults - 1)
        correlation = (mean_between - mean_within) / (mean_between + (typical - 1) * mean_within)
        correlation = float(np.clip(correlation, 0, 1))
    effect = 1 + (average - 1) * correlation
    return Clustering(faults, int(total), correlation, effect, float(total / effect))


def _counts(successes: npt.ArrayLike, items: npt.ArrayLike) -> tuple[Floats, Floats]:
    hits, sizes = floats(successes, "successes", dimensions=1), floats(items, "items", dimensions=1)
    if hits.shape != sizes.shape or not ((hits >= 0) & (hits <= sizes)).all():
        raise InputError("successes do not fit items: give 0 <= successes <= items, one pair per fault")
    return hits, sizes
