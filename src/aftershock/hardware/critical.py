"""Statistical ABFT (ReaLM, arXiv 2503.24053, DAC'25): which errors of a product matter enough to compute it again.

From the column differences d_j of a tile or a whole product: MSD, the sum of their deviations, and the frequency of
those that are large. Lines in the plane of (log2 MSD, log2 frequency) bound the critical region.
"""

from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, log2

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

_ROUNDING = 1e-9
"""Points that a line can't part by more than this, in log2, count as not parted."""

_STEEPEST = 1000.0
"""Lines that are steeper tell no more of the grid, and their arithmetic less exactly."""


def matrix_sum_deviation(differences: Integers) -> Integers:
    """MSD of absolute deviations, sum_j |d_j|; from shape (..., columns) to (...).

    The paper writes sum_j d_j. Signed, errors of either sign cancel: a bit that flips from 0 to 1 in one column and
    from 1 to 0 in another make a small sum, a high bar and a missed error. Absolute, none can, and where all errors
    have one sign, as in the experiments that regions are fitted to, the two are equal. It is never the smaller one,
    so it errs toward recovery; in hardware it costs one absolute value an entry. `aftershock` uses it everywhere.
    """
    return np.asarray(np.abs(differences).sum(axis=-1, dtype=np.int64))


def signed_sum_deviation(differences: Integers) -> Integers:
    """MSD as ReaLM writes it, sum_j d_j, which can cancel; from shape (..., columns) to (...). To compare."""
    return np.asarray(differences.sum(axis=-1, dtype=np.int64))


@dataclass(frozen=True)
class CriticalRegion:
    """Right of the line log2 frequency = a log2 MSD - b and above log2 frequency = theta_freq.

    `a` > 1. `theta_freq` is on the scale of log2, as in the paper's figure: more than 2^theta_freq columns. Sensitive
    components have no such line: theta_freq = -inf, one column is enough (0 would let a single error pass, as
    log2 1 = 0 is not above 0). `b`, like MSD, belongs to a size of product: see `scaled`. Raises InputError where
    a is 1 or less, a or b is not finite, or theta_freq is NaN.
    """

    a: float
    b: float
    theta_freq: float = -inf

    def __post_init__(self) -> None:
        if not self.a > 1 or not isfinite(self.a) or not isfinite(self.b) or isnan(self.theta_freq):
            raise InputError(
                f"a critical region needs a finite a > 1 and b, and a theta_freq that is a number: not {self}"
            )

    def theta_mag(self, differences: Integers) -> Floats:
        """b - (a - 1) log2 MSD: log2 of the size from which on a deviation counts; from (..., columns) to (...). The
        larger MSD, the lower; inf where MSD is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.b - (self.a - 1) * np.log2(matrix_sum_deviation(differences)))

    def effective_frequency(self, differences: Integers) -> Integers:
        """How many columns have log2 |d_j| > theta_mag; from (..., columns) to (...). A column counts once."""
        with np.errstate(divide="ignore"):
            sizes = np.log2(np.abs(differences))
        return np.asarray((sizes > self.theta_mag(differences)[..., None]).sum(axis=-1))

    def recovers(self, differences: Integers) -> Booleans:
        """ReaLM's rule: compute again if and only if effective frequency > 2^theta_freq; (..., columns) to (...)."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log2(self.effective_frequency(differences)) > self.theta_freq)

    def contains(self, log_msd: npt.ArrayLike, log_frequency: npt.ArrayLike) -> Booleans:
        """Whether points lie inside. For 2^log_frequency equal errors in as many columns the same as `recovers`."""
        across, up = np.asarray(log_msd, dtype=np.float64), np.asarray(log_frequency, dtype=np.float64)
        return np.asarray((up < self.a * across - self.b) & (up > self.theta_freq))

    def scaled(self, share: float) -> "CriticalRegion":
        """The same region for a part that holds `share` of the product's accumulators, 1 / tiles for one tile.

        Errors that are spread evenly leave a tile that share of the frequency and of MSD, so both axes move by
        log2(share): theta_freq by log2(share), b by (a - 1) log2(share). The bar for one deviation, theta_mag, then
        stays where it was, and every tile says what the whole product would. A tile with more than its share of equal
        errors lies farther inside both lines (a > 1), one with less farther outside. Where theta_freq falls below 0
        any one column is enough. Our reading: the paper fits whole products, counts in tiles and does not say how.
        Raises InputError for a share outside 0 (not included) to 1.
        """
        if not 0 < share <= 1:
            raise InputError(f"a part can't hold a share of {share} of a product: give one above 0, up to 1")
        return replace(self, b=self.b + (self.a - 1) * log2(share), theta_freq=self.theta_freq + log2(share))


def fit_region(log_msd: npt.ArrayLike, log_frequency: npt.ArrayLike, acceptable: npt.ArrayLike) -> CriticalRegion:
    """The region that holds every point that is not acceptable and, of those, the fewest acceptable ones.

    `log_msd`, `log_frequency`: log2, shape (points,); `acceptable`: bool. theta_freq lies midway between the least
    frequency that is not acceptable and the next tested below it, or is -inf where none was tested. The inclined
    line is found by trying: which points it parts changes only where it passes through one of either kind, so one slope
    between any two such slopes is enough (exact, unlike a soft margin). Of equally good lines it is the one farthest
    from points of both kinds.
    Raises InputError where all points are acceptable, or none, as the border then lies outside the grid.
    """
    across, up = (np.asarray(one, dtype=np.float64) for one in (log_msd, log_frequency))
    fine = np.asarray(acceptable, dtype=np.bool_)
    if not across.shape == up.shape == fine.shape == (fine.size,) or not np.isfinite([across, up]).all():
        raise InputError("a grid needs one finite log2 MSD, one log2 frequency and one verdict for each point")
    if fine.all() or not fine.any():
        verdict = "every point is" if fine.all() else "no point is"
        raise InputError(f"{verdict} acceptable, so the border lies outside the grid: try larger and smaller errors")
    lowest = up[~fine].min()
    below = up[up < lowest]
    theta = float((lowest + below.max()) / 2) if below.size else -inf
    judged = fine & (up > theta)
    if not judged.any():
        raise InputError("no acceptable point has the frequencies that do harm: try smaller errors at those as well")
    lines = [_line(slope, across, up, ~fine, judged) for slope in _slopes(across, up, ~fine, judged)]
    _, _, a, b = max(lines)
    return CriticalRegion(a, b, theta)


def _slopes(across: Floats, up: Floats, harmful: Booleans, judged: Booleans) -> Floats:
    """One slope above 1 between any two at which a line passes through a harmful and an acceptable point."""
    run = np.subtract.outer(across[harmful], across[judged])
    rise = np.subtract.outer(up[harmful], up[judged])
    apart = np.abs(run) > _ROUNDING
    meeting = rise[apart] / run[apart]
    meeting = np.unique(meeting[(meeting > 1) & (meeting < _STEEPEST)])
    edges = np.array([1.0, *meeting, meeting.max(initial=1.0) + 1.0])
    return np.asarray((edges[:-1] + edges[1:]) / 2)


def _line(
    slope: float, across: Floats, up: Floats, harmful: Booleans, judged: Booleans
) -> tuple[int, float, float, float]:
    """How many acceptable points the best line of a slope accepts, its distance from the nearest points; a, b."""
    offsets = slope * across - up
    border = offsets[harmful].min()
    accepted = offsets[judged & (offsets < border - _ROUNDING)]
    # With none accepted the line may lie anywhere to the left.
    nearest = accepted.max() if accepted.size else border - 1.0
    distance = (border - nearest) / 2 / np.hypot(slope, 1.0) if accepted.size else 0.0
    return int(accepted.size), float(distance), float(slope), float((border + nearest) / 2)
