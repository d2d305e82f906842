"""How likely bit errors make a parameter NaN or infinite, and how many parameters a rate of NaN tells of.

Every stored bit flips on its own with probability `rate`. A word is not finite when its whole exponent field is ones,
and then NaN unless its mantissa is all zeros. With z zeros in the exponent field of E bits and j ones among the M bits
of the mantissa that happens with probability

    not finite:  p^z (1-p)^(E-z)          NaN:  p^z (1-p)^(E-z) (1 - p^j (1-p)^(M-j))

Morumpalle et al., "Specified Backup for Fragile Parts of LLM" (2024), section 6.1, take z = 1 for every weight, which
are the values in [1, 2), and a mantissa of fair coins. `counts` of real weights (`numerics.field_counts`) replace both.
That a parameter is not finite is not that an output is not: large finite weights overflow in the products too.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.stats.estimates import Estimate, Floats, check_fraction, floats
from aftershock.stats.intervals import exact_bounds


@dataclass(frozen=True)
class NonFinite:
    """Chances for one parameter picked at random, and for at least one of all of them."""

    parameter_nan: float
    parameter: float
    any_nan: float
    any: float


def nonfinite_chance(counts: npt.ArrayLike, rate: float) -> NonFinite:
    """The chances that bit errors at `rate` make parameters NaN, and NaN or infinite.

    `counts`, shape (E + 1, M + 1): how many parameters have z zeros in the exponent field and j ones in the mantissa.
    Raises InputError unless counts are >= 0 with some above 0, and 0 < rate < 1.
    """
    check_fraction(rate, "rate")
    numbers = floats(counts, "counts", dimensions=2)
    if numbers.min() < 0 or numbers.sum() == 0 or min(numbers.shape) < 2:
        raise InputError("counts must be 0 or more, some above 0, for each number of exponent zeros and mantissa ones")
    whole = _all_alike(numbers.shape[0] - 1, rate)[:, None]
    nan = whole * (1 - _all_alike(numbers.shape[1] - 1, rate))
    every = np.broadcast_to(whole, numbers.shape)
    return NonFinite(_mean(numbers, nan), _mean(numbers, every), _any(numbers, nan), _any(numbers, every))


def published_nan_chance(parameters: int, rate: float) -> float:
    """The paper's formula for fp32: 1 - (1 - p (1-p)^7 (1 - 2^-23))^n. Raises InputError unless 0 < rate < 1 and there
    is a parameter."""
    check_fraction(rate, "rate")
    if parameters < 1:
        raise InputError(f"{parameters} parameters have no chance of NaN: give their number")
    return float(-np.expm1(parameters * np.log1p(-rate * (1 - rate) ** 7 * (1 - 2.0**-23))))


def parameters_from_nan(nan_copies: int, copies: int, chance: float, confidence: float = 0.95) -> Estimate:
    """How many parameters a model has of which `nan_copies` of `copies` independently corrupted copies gave NaN:
    ln(1 - q) / ln(1 - chance), with the exact interval of q.

    `chance` is that of one parameter: `NonFinite.parameter_nan`, or the paper's, `published_nan_chance(1, rate)`.
    Repeated questions to one corrupted copy say nothing new. Infinite where every copy gave NaN.

    Raises InputError unless 0 <= nan_copies <= copies, copies > 0 and 0 < chance < 1.
    """
    check_fraction(chance, "chance")
    if not 0 <= nan_copies <= copies or copies < 1:
        raise InputError(f"{nan_copies} of {copies} copies gave NaN: give a count from 0 to all of them")
    share = nan_copies / copies
    low, high = exact_bounds(share, copies, confidence)
    with np.errstate(divide="ignore"):
        estimate, least, most = (np.log1p(-np.array([share, low, high])) / np.log1p(-chance)).tolist()
    return Estimate(estimate, least, most, copies)


def _all_alike(bits: int, rate: float) -> Floats:
    """Chance that a field with 0, 1, ... bits to flip has just these flipped; shape (bits + 1,)."""
    wrong = np.arange(bits + 1)
    return np.asarray(rate**wrong * (1 - rate) ** (bits - wrong))


def _mean(counts: Floats, chances: Floats) -> float:
    return float((counts * chances).sum() / counts.sum())


def _any(counts: Floats, chances: Floats) -> float:
    """Chance that at least one of independent parameters is struck so."""
    return float(-np.expm1((counts * np.log1p(-chances)).sum()))
