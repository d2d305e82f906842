"""Intervals that hold at every look: a study may stop at any of them."""

from math import log

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.stats.allocation import FIRST_GUESS, stratum_variances
from aftershock.stats.estimates import Estimate, Floats, check_fraction, floats
from aftershock.stats.weighted import Design, Ints

_LARGEST_RATE = 0.75
"""Largest bet on one fault (Waudby-Smith and Ramdas advise 1/2 or 3/4); 1 would be unbounded."""


def anytime_interval(shares: npt.ArrayLike, margin: float, design: Design, confidence: float = 0.95) -> Estimate:
    """Mean share of the population with an interval that holds, at the end of every round at once, with `confidence`.

    `shares` has shape (faults,), in the order of the trials, values in [0, 1], NaN for a fault without eligible items.
    The design's rounds never fall, and each has a fault of every stratum. The interval is tightest when it is about
    +- `margin` wide.

    It is the empirical Bernstein confidence sequence (Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics 2021,
    theorem 4; Waudby-Smith and Ramdas, J. Royal Statistical Society B 2024, theorem 2): for rates l_i < 1 and guesses
    g_i that are known before x_i is, the product of exp(l_i (x_i - E x_i) - psi(l_i) (x_i - g_i)^2), psi(l) =
    -log(1 - l) - l, is a supermartingale, whatever the means. With l_i = l_r N_r W_h / n_rh in round r the means of a
    round add up to l_r N_r times the population's, so that only the spread within strata costs width. A betting
    sequence is a little narrower where all faults have one mean, but has no such sum over strata. A fault without
    eligible items takes the very value that is tested. The estimate is the weighted mean.

    Raises InputError for a share outside [0, 1], rounds that fall or a round that misses a stratum.
    """
    check_fraction(confidence, "confidence")
    check_fraction(margin, "margin")
    values = floats(shares, "shares", dimensions=1)
    known = ~np.isnan(values)
    if design.strata.shape != values.shape or (np.diff(design.rounds) < 0).any():
        raise InputError("shares and design do not fit: give one share per fault, in the order of the rounds")
    filled = np.where(known, values, 0.0)
    if filled.min() < 0 or filled.max() > 1:
        raise InputError("shares holds a share outside 0 to 1: divide successes by eligible items")
    rates = _rates(values, design, margin)
    price = -np.log1p(-rates) - rates
    guesses = _guesses(filled, known, design.strata)
    # For a candidate mean m: |a - b m| <= c + sum of price (m - g)^2 over the faults that have no share of their own.
    a, b = float(rates @ filled), float(rates @ known)
    own, missing = np.where(known, price, 0.0), np.where(known, 0.0, price)
    c = log(2 / (1 - confidence)) + float(own @ (filled - guesses) ** 2)
    square, linear, constant = float(missing.sum()), float(missing @ guesses), float(missing @ guesses**2)
    high = _root(square, -2 * linear - b, c + constant + a)
    low = 1 - _root(square, -2 * (square - linear) - b, c + square - 2 * linear + constant + b - a)
    weights = np.where(known, design.weights, 0.0)
    if not known.any():
        return Estimate(0.0, 0.0, 1.0, 0)
    estimate = float(np.clip(weights @ filled / weights.sum(), 0, 1))
    return Estimate(estimate, min(low, estimate), max(high, estimate), int(known.sum()))


def _rates(values: Floats, design: Design, margin: float) -> Floats:
    """The rate of each fault, float64 of shape (faults,): known before its round begins.

    The width (log(2 / alpha) + n V psi(l)) / (n l), V the variance of a fault's weighted share, is smallest, and
    equal to the margin m, where m = V psi'(l) = V l / (1 - l), so l = m / (V + m). V comes from the rounds before.
    """
    rates = np.empty(values.size)
    shares = design.chances / design.chances.sum()
    for number in np.unique(design.rounds):
        here, before = design.rounds == number, design.rounds < number
        strata = design.strata[here]
        counts = np.bincount(strata, minlength=shares.size)
        if not counts.all():
            raise InputError(f"round {number} misses a stratum: every round takes at least one fault from each")
        scale = shares / counts * strata.size
        past = Design(design.strata[before], design.chances, design.rounds[before])
        variances = stratum_variances(values[before], past) if before.any() else np.full(shares.size, FIRST_GUESS)
        variance = float((counts * scale**2) @ variances / strata.size)
        rate = margin / (variance + margin * scale.max())
        rates[here] = min(rate, _LARGEST_RATE / scale.max()) * scale[strata]
    return rates


def _guesses(filled: Floats, known: npt.NDArray[np.bool_], strata: Ints) -> Floats:
    """What each share is expected to be from those before it: its stratum's mean, begun with the mean of all."""
    seen, total = _before(known.astype(np.float64)), _before(filled)
    overall = (total + FIRST_GUESS) / (seen + 1)
    order = np.argsort(strata, kind="stable")
    begins = np.flatnonzero(np.diff(strata[order], prepend=-1))
    sizes = np.diff(begins, append=strata.size)
    guesses = np.empty(filled.size)
    own_seen, own_total = _before(known[order].astype(np.float64)), _before(filled[order])
    own_seen -= np.repeat(own_seen[begins], sizes)
    own_total -= np.repeat(own_total[begins], sizes)
    guesses[order] = (own_total + overall[order]) / (own_seen + 1)
    return np.clip(guesses, 0, 1)


def _before(values: Floats) -> Floats:
    return np.cumsum(values) - values


def _root(square: float, linear: float, constant: float) -> float:
    """Where square m^2 + linear m + constant, which begins positive, turns negative in [0, 1]; 1 where it does not."""
    if square + linear + constant >= 0:
        return 1.0
    return float(2 * constant / (-linear + np.sqrt(linear**2 - 4 * square * constant)))
