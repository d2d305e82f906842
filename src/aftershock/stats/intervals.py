"""Intervals for a rate seen in n independent tries; a bound of a mean."""

from collections.abc import Sequence
from math import inf, isfinite, sqrt
from statistics import fmean, stdev

from scipy.special import betaincinv, ndtri, stdtrit

from aftershock.errors import InputError
from aftershock.stats.estimates import Estimate, check_fraction


def normal_quantile(confidence: float) -> float:
    """The two-sided standard normal quantile: 1.95996 for 0.95. Raises InputError outside (0, 1)."""
    check_fraction(confidence, "confidence")
    return float(ndtri(0.5 + confidence / 2))


def wilson_bounds(rate: float, n: float, confidence: float) -> tuple[float, float]:
    """Bounds of the score interval (Wilson, JASA 1927) for a rate seen in n tries; n may be an effective,
    fractional number."""
    z2 = normal_quantile(confidence) ** 2
    centre = rate + z2 / (2 * n)
    half = sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n)))
    scale = 1 + z2 / n
    # Rounding must not push a bound past the rate itself at 0 or 1.
    return min(rate, max(0.0, (centre - half) / scale)), max(rate, min(1.0, (centre + half) / scale))


def exact_bounds(rate: float, n: float, confidence: float) -> tuple[float, float]:
    """Bounds of the exact interval (Clopper and Pearson, Biometrika 1934) by the quantiles of the beta
    distribution, which extend it to a fractional n (Korn and Graubard, Survey Methodology 1998)."""
    check_fraction(confidence, "confidence")
    tail = (1 - confidence) / 2
    successes, failures = rate * n, (1 - rate) * n
    low = float(betaincinv(successes, failures + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures > 0 else 1.0
    return low, high


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Rate of `successes` in `n` independent tries with its score interval (Wilson, JASA 1927).

    Raises InputError unless 0 <= successes <= n, n >= 1.
    """
    _check_tries(successes, n)
    low, high = wilson_bounds(successes / n, n, confidence)
    return Estimate(successes / n, low, high, n)


def exact(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Rate of `successes` in `n` independent tries with its exact interval (Clopper and Pearson, Biometrika 1934),
    which holds for the rarest events too.

    Raises InputError unless 0 <= successes <= n, n >= 1.
    """
    _check_tries(successes, n)
    low, high = exact_bounds(successes / n, n, confidence)
    return Estimate(successes / n, low, high, n)


def rule_of_three(n: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate of which n independent tries showed no event: 1 - (1 - confidence)^(1/n).

    At 95 % this is close to 3/n, which gives the rule its name (Hanley and Lippman-Hand, JAMA 1983).
    Raises InputError unless n >= 1.
    """
    check_fraction(confidence, "confidence")
    if n < 1:
        raise InputError(f"{n} tries bound nothing: give at least 1")
    return float(1 - (1 - confidence) ** (1 / n))


def upper_bound(losses: Sequence[float], confidence: float = 0.95) -> float:
    """One-sided upper bound of the mean of independent losses, by Student's t: mean + t s / sqrt(n); inf where one is
    not finite, or where there is only one. Raises InputError for a confidence outside (0, 1)."""
    check_fraction(confidence, "confidence")
    if len(losses) < 2 or not all(map(isfinite, losses)):
        return inf
    quantile = float(stdtrit(len(losses) - 1, confidence))
    return fmean(losses) + quantile * stdev(losses) / sqrt(len(losses))


def _check_tries(successes: int, n: int) -> None:
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"{successes} successes in {n} tries is no rate: give 0 <= successes <= tries, tries >= 1")
