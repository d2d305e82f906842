"""Intervals by resampling, for figures that have no formula.

Percentile bootstrap (Efron, Annals of Statistics 1979). All draws come from `aftershock.numerics.generator`, so the
same input and seed give the same interval.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats.estimates import Estimate, Floats, check_fraction

RESAMPLES = 4000
_CELLS = 2**21
"""Most numbers drawn at once, so that memory stays flat however many faults a study has."""


def batches(resamples: int, width: int) -> Iterator[int]:
    """Sizes that sum to `resamples`, each small enough that size x width numbers fit in memory."""
    size = max(1, _CELLS // width)
    for done in range(0, resamples, size):
        yield min(size, resamples - done)


def percentile_bounds(statistics: Floats, confidence: float) -> tuple[float, float]:
    """Bounds that leave half of 1 - confidence of the resampled statistics, shape (resamples,), on each side.

    They are members of the sample, never interpolated, so infinities are allowed.
    """
    check_fraction(confidence, "confidence")
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[[Floats], Floats],
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Any figure of a sample of faults, with an interval from resampling the faults.

    `values` has shape (faults, ...): what was measured of each fault. `statistic` maps an array of shape
    (batch, faults, ...) to the figure of each sample, shape (batch,). For a mean of shares prefer
    `cluster_interval`: with few events a percentile interval is too short, with none it has no width at all.
    Raises InputError for an empty sample.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise InputError("there is nothing to resample: give at least one fault")
    rng = generator(seed, 0, "bootstrap")
    faults = array.shape[0]
    resampled = np.concatenate(
        [statistic(array[rng.integers(faults, size=(batch, faults))]) for batch in batches(resamples, array.size)]
    )
    low, high = percentile_bounds(resampled, confidence)
    return Estimate(float(statistic(array[None])[0]), low, high, faults)
