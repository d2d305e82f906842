"""Rates of faults that were not drawn in proportion: stratified samples and importance weights.

A sample is a list of faults, each from a stratum of known chance (the share of the population that lies in it). A
fault then stands for more of the population the fewer faults its stratum got.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from aftershock.errors import InputError
from aftershock.stats.clustered import Label
from aftershock.stats.estimates import Estimate, Floats, check_fraction, floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """How the faults of a sample were drawn: the stratum of each, int64 of shape (faults,), numbered from 0; the chance
    of each stratum in the population, float64 of shape (strata,), positive; the round of each fault, int64 of shape
    (faults,). What a round takes from each stratum may depend on what the rounds before it found."""

    strata: Ints
    chances: Floats
    rounds: Ints

    @cached_property
    def weights(self) -> Floats:
        """What each fault stands for, float64 of shape (faults,), 1 on average: N_r W_h / n_rh.

        Every round estimates the rate by itself, and rounds count by their size N_r. Weights from the faults of all
        rounds together, W_h / n_h, would be biased where the later rounds went by what the earlier ones found: a
        stratum that happens to show an event gets more faults, one that happens to show none keeps its zero.
        """
        shares = self.chances / self.chances.sum()
        cells = self.rounds * self.chances.size + self.strata
        counts = np.bincount(cells)[cells]
        return np.asarray(shares[self.strata] * np.bincount(self.rounds)[self.rounds] / counts)

    def part(self, kept: npt.NDArray[np.bool_]) -> "Design":
        """The design of the faults kept (bool, shape (faults,)), as a sample of the strata that they lie in."""
        found, strata = np.unique(self.strata[kept], return_inverse=True)
        return Design(strata.astype(np.int64), self.chances[found], self.rounds[kept])


def design_of(names: Sequence[Hashable], chances: npt.ArrayLike, rounds: npt.ArrayLike | None = None) -> Design:
    """The design of faults whose strata are named, with the chance of each fault's own stratum, shape (faults,), and
    its round from 0 on, same shape (one round where not given).

    Raises InputError when lengths differ, a chance is not positive or the faults of a stratum disagree about it.
    """
    values = floats(chances, "chances", dimensions=1)
    whose = np.zeros(values.size, dtype=np.int64) if rounds is None else np.asarray(rounds, dtype=np.int64)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    strata = np.array([numbers[name] for name in names], dtype=np.int64)
    if not values.size == strata.size == whose.size or not values.min() > 0 or whose.min() < 0:
        raise InputError(f"{values.size} chances for {strata.size} faults: give each the chance (> 0) of its stratum")
    of_stratum = np.zeros(len(numbers))
    of_stratum[strata] = values
    if (of_stratum[strata] != values).any():
        raise InputError("faults of one stratum have different chances: a stratum has one share of the population")
    return Design(strata, of_stratum, whose)


def one_stratum(faults: int) -> Design:
    """The design of faults drawn as the population has them, in one round."""
    zeros = np.zeros(faults, dtype=np.int64)
    return Design(zeros, np.ones(1), zeros)


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """(sum w)^2 / sum w^2: the equally weighted faults that would average as well (Kish, Survey Sampling, 1965).

    Between strata this understates a stratified sample, whose strata are known exactly. Raises InputError unless
    weights, shape (faults,), are non-negative and not all 0.
    """
    values = _weights(weights)
    return float(values.sum() ** 2 / (values**2).sum())


def importance_interval(shares: npt.ArrayLike, weights: npt.ArrayLike, confidence: float = 0.95) -> Estimate:
    """Self-normalised mean, sum w x / sum w, of faults drawn from another distribution than the one asked about.

    `weights` is the ratio of the two probabilities of each fault, up to a factor; both arrays have shape (faults,), NaN
    shares are left out. The interval is that of `weighted_interval` with one stratum. Raises InputError as it does.
    """
    values, ratios = floats(shares, "shares", dimensions=1), _weights(weights)
    if values.shape != ratios.shape:
        raise InputError(f"{ratios.size} weights for {values.size} shares: give one weight per fault")
    return _interval(values, ratios, one_stratum(values.size).strata, confidence)


def weighted_interval(shares: npt.ArrayLike, design: Design, confidence: float = 0.95) -> Estimate:
    """Mean share of the population from a stratified sample, with its interval; the fault is the unit.

    `shares` has shape (faults,), values in [0, 1]; NaN leaves a fault out (no eligible item, or of another group). The
    rate is sum_h W_h p_h over the faults left in: the ratio of weighted sums (Hajek), with the design's weights. Its
    variance is the sum of the strata's, by linearisation (Cochran, Sampling Techniques, 1977, chapters 5 and 6).

    The bounds are quantiles of beta distributions as in the exact interval, which counts one more failure (success)
    than there was. Here that one has the largest weight w: the upper distribution has mean (p + w) / (1 + w) and
    variance (v + w^2) / (1 + w)^2, which is Fay and Feuer's interval of weighted counts (Statistics in Medicine 1997)
    for shares. So a sample without any event still has a width, that of its thinnest stratum.

    Raises InputError when no fault is left or a share lies outside [0, 1].
    """
    values = floats(shares, "shares", dimensions=1)
    if values.size != design.strata.size:
        raise InputError(f"{values.size} shares for a design of {design.strata.size} faults: give one per fault")
    return _interval(values, design.weights, design.strata, confidence)


def weighted_by_label(
    labels: Sequence[Label], shares: npt.ArrayLike, design: Design, confidence: float = 0.95
) -> dict[Label, Estimate]:
    """`weighted_interval` of the faults of each label, in order of first appearance; as `by_label` otherwise."""
    values = np.asarray(shares, dtype=np.float64)
    if values.shape != (len(labels),):
        raise InputError(f"{len(labels)} labels for shares of shape {values.shape}: give one label per fault")
    members: dict[Label, list[int]] = {}
    for position in np.flatnonzero(~np.isnan(values)).tolist():
        members.setdefault(labels[position], []).append(position)
    found = {}
    for label, positions in members.items():
        group = np.full(values.size, np.nan)
        group[positions] = values[positions]
        found[label] = weighted_interval(group, design, confidence)
    return found


def _weights(weights: npt.ArrayLike) -> Floats:
    values = floats(weights, "weights", dimensions=1)
    if not values.min() >= 0 or values.sum() == 0:
        raise InputError("weights must be 0 or more, and not all 0")
    return values


def _interval(values: Floats, weights: Floats, strata: Ints, confidence: float) -> Estimate:
    check_fraction(confidence, "confidence")
    known = ~np.isnan(values)
    if not known.any():
        raise InputError("shares holds no fault with an eligible item: run more trials or choose other items")
    if values[known].min() < 0 or values[known].max() > 1:
        raise InputError("shares holds a share outside 0 to 1: divide successes by eligible items")
    parts = np.where(known, weights, 0.0)
    parts = parts / parts.sum()
    filled = np.where(known, values, 0.0)
    rate = float(np.clip(parts @ filled, 0, 1))
    variance = _variance(parts, np.where(known, filled - rate, 0.0), strata)
    largest = float(parts.max())
    low = 1 - _upper(1 - rate, variance, largest, confidence)
    high = _upper(rate, variance, largest, confidence)
    return Estimate(rate, min(rate, low), max(rate, high), int(known.sum()))


def _variance(parts: Floats, terms: Floats, strata: Ints) -> float:
    """Variance of the sum of parts x terms, the terms of a stratum alike; those of a stratum of one count whole."""
    counts = np.bincount(strata)
    squares, sums = np.bincount(strata, terms**2), np.bincount(strata, terms)
    about_mean = (squares - sums**2 / np.maximum(counts, 1)).clip(min=0)
    spread = np.where(counts > 1, about_mean / np.maximum(counts - 1, 1), squares)
    return float(np.bincount(strata, parts**2) @ spread)


def _upper(rate: float, variance: float, largest: float, confidence: float) -> float:
    mean = (rate + largest) / (1 + largest)
    spread = (variance + largest**2) / (1 + largest) ** 2
    if mean >= 1:
        return 1.0
    # The size of the beta distribution with this mean and variance; one fault alone can't have less than one.
    size = max(1.0, mean * (1 - mean) / spread - 1)
    return float(betaincinv(mean * size, (1 - mean) * size, 0.5 + confidence / 2))
