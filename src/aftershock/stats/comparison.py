"""Differences: over the noise floor, and between two studies.

Intervals are percentile bootstraps over the faults together with two pseudo-faults that differ by +1 and by -1 (by 0
and 1 in each sample, when unpaired). These are the pseudo-observations of Agresti and Caffo (American Statistician
2000) and Bonett and Price (J. Educational and Behavioral Statistics 2012): without them the interval of a study
that saw no event would have no width. Estimates are those of the real faults alone.
"""

from math import erfc, hypot, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats.bootstrap import RESAMPLES, batches, percentile_bounds
from aftershock.stats.estimates import Comparison, Estimate, Floats, floats, share_array
from aftershock.stats.intervals import normal_quantile


def paired_excess(
    shares: npt.ArrayLike,
    floor: npt.ArrayLike,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    weights: npt.ArrayLike | None = None,
) -> Estimate:
    """Mean over faults of the share of failures in excess of the noise floor of the same items.

    `shares` has shape (faults,); `floor` has shape (faults, perturbations): row j holds, for each meaningless
    perturbation, the share of fault j's own items that it made fail. NaN shares are left out with their rows.
    Every fault shares the same perturbations, so both are resampled, faults and perturbations. `weights`, shape
    (faults,), say what each fault of a weighted sample stands for; its strata are not known here, so the interval is
    that of an importance sample, on the wide side.
    Raises InputError when the shapes do not fit, no fault is left or a value lies outside [0, 1].
    """
    observed, noise = floats(shares, "shares", dimensions=1), floats(floor, "floor", dimensions=2)
    if noise.shape[0] != observed.size:
        raise InputError(f"floor has {noise.shape[0]} rows for {observed.size} shares: give one row per fault")
    known = ~np.isnan(observed)
    noise = noise[known]
    stands_for = np.ones(known.sum()) if weights is None else floats(weights, "weights", dimensions=1)[known]
    observed = share_array(observed, "shares")
    share_array(noise.ravel(), "floor")
    if np.isnan(noise).any():
        raise InputError("floor holds NaN: measure every perturbation on every fault's items")
    faults, perturbations = noise.shape
    augmented = np.append(observed, [1.0, -1.0])
    augmented_noise = np.vstack([noise, np.zeros((2, perturbations))])
    augmented_weights = np.append(stands_for, [stands_for.mean(), stands_for.mean()])
    rng = generator(seed, 0, "paired excess")
    resampled = []
    for batch in batches(resamples, faults + 2 + perturbations):
        fault_weights = _weights(rng, batch, faults + 2)
        if weights is not None:
            fault_weights = fault_weights * augmented_weights
            fault_weights /= fault_weights.sum(axis=1, keepdims=True)
        floor_weights = _weights(rng, batch, perturbations)
        floors = (fault_weights @ augmented_noise * floor_weights).sum(axis=1)
        resampled.append(fault_weights @ augmented - floors)
    low, high = percentile_bounds(np.concatenate(resampled), confidence)
    excess = observed.mean() - noise.mean()
    if weights is not None:
        excess = (observed - noise.mean(axis=1)) @ stands_for / stands_for.sum()
    return Estimate(float(excess), low, high, faults)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Second minus first rate of two studies of the same faults, in the same order, with a p-value.

    Both arrays hold shares in [0, 1], shape (faults,); a fault that is NaN in either is left out. The p-value is that
    of the randomisation test that exchanges the studies fault by fault (Fisher, Design of Experiments, 1935).
    Raises InputError when the shapes differ, no fault is left or a share lies outside [0, 1].
    """
    before, after = floats(first, "first", dimensions=1), floats(second, "second", dimensions=1)
    if before.shape != after.shape:
        raise InputError(f"{before.size} shares against {after.size}: paired studies have the same faults")
    both = ~(np.isnan(before) | np.isnan(after))
    changes = share_array(after[both], "second") - share_array(before[both], "first")
    augmented = np.append(changes, [1.0, -1.0])
    rng = generator(seed, 0, "paired difference")
    resampled, exchanged = [], []
    for batch in batches(resamples, changes.size + 2):
        resampled.append(_weights(rng, batch, augmented.size) @ augmented)
        signs = rng.integers(2, size=(batch, changes.size)) * 2.0 - 1.0
        exchanged.append(signs @ changes / changes.size)
    low, high = percentile_bounds(np.concatenate(resampled), confidence)
    estimate = float(changes.mean())
    return Comparison(Estimate(estimate, low, high, changes.size), _p_value(estimate, np.concatenate(exchanged)))


def unpaired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Second minus first rate of two studies of different faults, with a p-value.

    Shares in [0, 1], shapes (first faults,) and (second faults,), NaN left out. The p-value is that of
    the permutation test that deals all faults anew to the two studies. `difference.n` counts the faults of both.
    Raises InputError when a study has no fault left or a share lies outside [0, 1].
    """
    before, after = share_array(first, "first"), share_array(second, "second")
    augmented_before, augmented_after = np.append(before, [0.0, 1.0]), np.append(after, [0.0, 1.0])
    pooled = np.concatenate([before, after])
    rng = generator(seed, 0, "unpaired difference")
    resampled, dealt = [], []
    for batch in batches(resamples, pooled.size + 4):
        after_means = _weights(rng, batch, augmented_after.size) @ augmented_after
        resampled.append(after_means - _weights(rng, batch, augmented_before.size) @ augmented_before)
        shuffled = rng.permuted(np.broadcast_to(pooled, (batch, pooled.size)), axis=1)
        dealt.append(shuffled[:, before.size :].mean(axis=1) - shuffled[:, : before.size].mean(axis=1))
    low, high = percentile_bounds(np.concatenate(resampled), confidence)
    estimate = float(after.mean() - before.mean())
    return Comparison(Estimate(estimate, low, high, pooled.size), _p_value(estimate, np.concatenate(dealt)))


def rate_difference(first: Estimate, second: Estimate, confidence: float = 0.95) -> Comparison:
    """Second minus first of two independent rates of any kind, from their intervals alone.

    The bounds combine the distances of each rate to its own bounds (the square-and-add method, Newcombe, Statistics in
    Medicine 1998; Zou and Donner, same journal, 2008); `confidence` is that of both intervals. The p-value takes the
    distances towards each other as normal. Raises InputError for a confidence outside (0, 1).
    """
    quantile = normal_quantile(confidence)
    estimate = second.estimate - first.estimate
    down = hypot(second.estimate - second.low, first.high - first.estimate)
    up = hypot(second.high - second.estimate, first.estimate - first.low)
    towards = down if estimate > 0 else up
    p_value = 1.0 if estimate == 0 else erfc(abs(estimate) / towards * quantile / sqrt(2)) if towards else 0.0
    return Comparison(Estimate(estimate, estimate - down, estimate + up, first.n + second.n), p_value)


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Exact two-sided p-value of two verdicts on the same answers, of which so many fail by one of them alone.

    If both fail alike often, each such answer is the toss of a fair coin (McNemar, Psychometrika 1947); 1 where there
    is none. The answers are taken as independent: where several share a fault, prefer `paired_difference`.
    Raises InputError for negative counts.
    """
    if first_alone < 0 or second_alone < 0:
        raise InputError(f"{first_alone} and {second_alone} are no counts: give 0 or more")
    return min(1.0, 2 * float(bdtr(min(first_alone, second_alone), first_alone + second_alone, 0.5)))


def _weights(rng: np.random.Generator, batch: int, size: int) -> Floats:
    """Share of each member in a resample of the same size, float64 of shape (batch, size); rows sum to 1."""
    return rng.multinomial(size, np.full(size, 1 / size), size=batch) / size


def _p_value(observed: float, under_null: Floats) -> float:
    """Two-sided Monte Carlo p-value, never 0 (Davison and Hinkley, Bootstrap Methods, 1997, chapter 4).

    The tolerance counts as equal what differs by the rounding of sums taken in another order.
    """
    extreme = np.count_nonzero(np.abs(under_null) >= abs(observed) - 1e-12)
    return float((1 + extreme) / (1 + under_null.size))
