"""Whether failures lie at one end of an ordered place: a block's depth, a decode step."""

from math import sqrt

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.stats.estimates import Estimate, Floats, floats
from aftershock.stats.intervals import normal_quantile


def rank_trend(
    places: npt.ArrayLike, shares: npt.ArrayLike, weights: npt.ArrayLike | None = None, confidence: float = 0.95
) -> Estimate:
    """Somers' D of place by failure, -1 to 1: the chance that what fails lies further on than what does not, less the
    chance of the contrary. 1: all failures lie beyond everything else; 0: no trend.

    It is Spearman's correlation of place and failure but for a factor that depends on how common failures are, by which
    Spearman's can't leave the neighbourhood of 0 where they are rare. So a margin for D means the same at any rate.

    `places` and `shares` (the share of a fault's items that fail, in [0, 1]) have shape (faults,), and so have
    `weights`, what each fault of a weighted sample stands for. NaN shares are left out. The variance is that of a
    two-sample U-statistic (DeLong et al., Biometrics 1988) with the fault as the unit: a fault of share s counts as
    s of a failure. Raises InputError when shapes differ, or where nothing fails or everything does.
    """
    where, found = floats(places, "places", dimensions=1), floats(shares, "shares", dimensions=1)
    mass = np.ones(found.size) if weights is None else floats(weights, "weights", dimensions=1)
    if not where.size == found.size == mass.size:
        raise InputError(f"{where.size} places for {found.size} shares: give one per fault")
    known = ~np.isnan(found)
    where, found, mass = where[known], found[known], mass[known]
    failed, passed = mass * found, mass * (1 - found)
    if not (failed.sum() > 0 and passed.sum() > 0):
        raise InputError("a trend needs faults that fail and faults that do not")
    failed, passed = failed / failed.sum(), passed / passed.sum()
    beyond_passed, beyond_failed = _middle_share(where, passed), _middle_share(where, failed)
    chance = float(failed @ beyond_passed)
    influence = failed * (beyond_passed - chance) + passed * (1 - beyond_failed - chance)
    # Where nothing overlaps the influences vanish; no fewer than half a fault of the rarer side is uncertain.
    least = max(float(failed @ failed), float(passed @ passed)) / 2
    spread = 2 * max(sqrt(float(influence @ influence)), least) * normal_quantile(confidence)
    trend = 2 * chance - 1
    return Estimate(trend, max(-1.0, trend - spread), min(1.0, trend + spread), found.size)


def _middle_share(places: Floats, mass: Floats) -> Floats:
    """Share of the mass that lies before each place, and half of that which lies at it."""
    _, number = np.unique(places, return_inverse=True)
    at = np.bincount(number, mass)
    return np.asarray((np.cumsum(at) - at / 2)[number])
