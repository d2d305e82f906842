"""Rates over trials, as summaries hold them."""

import numpy as np
import numpy.typing as npt

from aftershock.stats import Design, cluster_interval, weighted_interval
from aftershock.study.records import Record

Floats = npt.NDArray[np.float64]


class Rate(Record):
    """A share with its 95 % interval; `n` independent units (faults, perturbations) went into it."""

    estimate: float
    low: float
    high: float
    n: int

    def text(self) -> str:
        """`3.12 % (1.20 to 6.04, n = 80)`."""
        return f"{100 * self.estimate:.2f} % ({100 * self.low:.2f} to {100 * self.high:.2f}, n = {self.n})"


class LabelledRate(Rate):
    """Rate of the faults that share a label."""

    label: str


def mean_rate(shares: Floats, drawn: Design | None = None) -> Rate:
    """Mean of the shares of trials, shape (trials,), NaN where a trial has none; weighted where they were drawn from
    strata. 0 with interval 0 to 1, n = 0, where no trial has one."""
    if np.isnan(shares).all():
        return Rate(estimate=0.0, low=0.0, high=1.0, n=0)
    found = cluster_interval(shares) if drawn is None else weighted_interval(shares, drawn)
    return Rate(estimate=found.estimate, low=found.low, high=found.high, n=found.n)
