"""The error ratio over a whole run, errors of earlier points included, as Ekka has it (arXiv 2606.04594)."""

from collections.abc import Mapping

import numpy as np
import ruptures

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Target, deviations, free
from aftershock.diagnose.replica import Replica

PENALTY = 3.0
"""What a change of level has to explain: squared steps of the natural logarithm, times the logarithm of the length."""

ENDS = 1e-3, 1e9
"""Ratios beyond these are taken as these."""


def free_ratios(replica: Replica, tokens: Tokens, target: Target) -> dict[Point, float]:
    """Norm of target - truth over norm of low - truth at every shown point, in call order, where truth and low are the
    replica's own runs, without rounding and in the target's arithmetic, on the tokens alone."""
    return {one.point: one.ratio for one in deviations(replica, tokens, target, free)}


def rise(ratios: Mapping[Point, float], threshold: float) -> Point | None:
    """The first point from which the ratio stays above a threshold: the start of the first level, among those that a
    search for change points (PELT, Killick et al. 2012) tells apart in the logarithm, whose median is above it."""
    points = list(ratios)
    if not points:
        return None
    logs = np.log(np.clip(np.array([ratios[point] for point in points]), *ENDS))
    ends = ruptures.Pelt(model="l2", min_size=1, jump=1).fit(logs).predict(pen=PENALTY * np.log(len(logs) + 1))
    starts = [0, *ends[:-1]]
    levels = ((start, np.median(logs[start:end])) for start, end in zip(starts, ends, strict=True))
    start = next((start for start, level in levels if level > np.log(threshold)), None)
    return None if start is None else points[start]
