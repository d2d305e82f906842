"""How many faults a study needs, before it runs."""

from math import ceil

from aftershock.errors import InputError
from aftershock.stats.estimates import check_fraction
from aftershock.stats.intervals import normal_quantile


def sample_size(population: int, margin: float, confidence: float = 0.95, rate: float = 0.5) -> int:
    """Faults to draw from `population` possible ones so that the rate's interval is +- `margin` (absolute).

    n = N / (1 + e^2 (N - 1) / (t^2 p (1 - p))), rounded up (Leveugle et al., DATE 2009); t is rounded to four
    decimals (1.96, 2.5758) as tables of that formula do. `rate` 0.5 is the worst case; an absolute margin says
    nothing about rates far below it, for which `sample_size_relative` is meant.
    Raises InputError for a population below 1 or a margin, confidence or rate outside (0, 1).
    """
    if population < 1:
        raise InputError(f"a population of {population} faults can't be sampled: give at least 1")
    check_fraction(margin, "margin")
    check_fraction(rate, "rate")
    spread = round(normal_quantile(confidence), 4) ** 2 * rate * (1 - rate)
    return ceil(population / (1 + margin**2 * (population - 1) / spread))


def sample_size_relative(rate: float, relative_error: float, confidence: float = 0.95) -> int:
    """Faults needed to know `rate` to within +- `relative_error` of itself (0.1: 10 %).

    n = t^2 (1 - p) / (r^2 p), rounded up: the normal approximation of the binomial, population taken as unlimited.
    Raises InputError for a rate or confidence outside (0, 1) or a relative error that is not positive.
    """
    check_fraction(rate, "rate")
    if relative_error <= 0:
        raise InputError(f"relative error is {relative_error}: give a positive number such as 0.1")
    t = round(normal_quantile(confidence), 4)
    return ceil(t**2 * (1 - rate) / (relative_error**2 * rate))
