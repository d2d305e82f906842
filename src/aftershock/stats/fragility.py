"""How fast a component loses accuracy as more of its values are corrupted.

Definitions after Morumpalle et al., "Specified Backup for Fragile Parts of LLM" (2024), section 6.3. A sweep is a
series of severities (rates of corrupted values, or counts of injected errors) and the accuracy at each.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats.bootstrap import RESAMPLES, batches, percentile_bounds
from aftershock.stats.estimates import Estimate, Floats, check_fraction, floats


def relative_change(baseline: float, accuracies: npt.ArrayLike) -> Floats:
    """Relative change in accuracy, (baseline - accuracy) / baseline: 0 no loss, 1 all lost, below 0 a gain.

    `accuracies` has any shape, which the result keeps. Raises InputError unless baseline > 0.
    """
    if not baseline > 0:
        raise InputError(f"baseline accuracy is {baseline}: choose items that the fault-free model answers right")
    return np.asarray((baseline - np.asarray(accuracies, dtype=np.float64)) / baseline)


def awrcl(baseline: float, accuracies: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Average weighted relative change in accuracy: sum_i w_i RCA_i / sum_i w_i.

    `accuracies` has shape (..., severities), `weights` (severities,); the result has shape (...). The paper
    leaves the weights open, so the caller states them. Raises InputError when lengths differ, a weight is negative or
    all are 0.
    """
    changes, importance = relative_change(baseline, accuracies), floats(weights, "weights", dimensions=1)
    if changes.shape[-1:] != importance.shape or importance.min() < 0 or importance.sum() == 0:
        raise InputError("weights do not fit accuracies: give one weight >= 0 per severity, not all 0")
    return np.asarray(changes @ importance / importance.sum())


def drop_threshold(severities: npt.ArrayLike, baseline: float, accuracies: npt.ArrayLike, drop: float = 0.5) -> Floats:
    """Smallest severity at which the share `drop` of the baseline accuracy is lost.

    `severities` (rates or counts) has shape (severities,), positive and rising; `accuracies` (..., severities); the
    result (...). Between the first severity that reaches the drop and the one before, the loss is taken as linear in
    the logarithm of the severity. 0 means already lost at the smallest severity, infinity not lost at the largest.
    Raises InputError when the shapes do not fit, severities do not rise from above 0, or drop is outside (0, 1).
    """
    check_fraction(drop, "drop")
    steps = _rising(severities)
    changes = relative_change(baseline, accuracies)
    if changes.shape[-1:] != steps.shape:
        raise InputError(f"{changes.shape} accuracies for {steps.size} severities: give one for each")
    reached = changes >= drop
    # Index of the first severity that reaches the drop; the neighbours are clipped where there is none.
    first = np.clip(reached.argmax(axis=-1), 1, steps.size - 1)[..., None]
    before = np.take_along_axis(changes, first - 1, axis=-1)[..., 0]
    after = np.take_along_axis(changes, first, axis=-1)[..., 0]
    first = first[..., 0]
    logs = np.log(steps)
    # Where the drop is not reached this is no number of use, nor is it used.
    with np.errstate(all="ignore"):
        part = (drop - before) / (after - before)
        between = np.exp(logs[first - 1] + part * (logs[first] - logs[first - 1]))
    return np.where(reached[..., 0], 0.0, np.where(reached.any(axis=-1), between, np.inf))


def awrcl_interval(
    baseline: float,
    samples: Sequence[npt.ArrayLike],
    weights: npt.ArrayLike,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """`awrcl` of the mean accuracies, with a bootstrap interval over injections.

    `samples[i]` holds the accuracies of independent injections at severity i, shape (injections,). The baseline is
    taken as known: it is measured on the very same items. Raises InputError as `awrcl` does, and for an empty sample.
    """
    return _sweep_interval(samples, lambda means: awrcl(baseline, means, weights), seed, confidence, resamples)


def threshold_interval(
    severities: npt.ArrayLike,
    baseline: float,
    samples: Sequence[npt.ArrayLike],
    seed: int,
    drop: float = 0.5,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """`drop_threshold` of the mean accuracies, with a bootstrap interval over injections.

    `samples` as for `awrcl_interval`. A bound of 0 or infinity says that the threshold may lie below or above the
    severities tried. Raises InputError as `drop_threshold` does, and for an empty sample.
    """
    return _sweep_interval(
        samples, lambda means: drop_threshold(severities, baseline, means, drop), seed, confidence, resamples
    )


def _rising(severities: npt.ArrayLike) -> Floats:
    steps = floats(severities, "severities", dimensions=1)
    if steps.size < 2 or not steps[0] > 0 or not (np.diff(steps) > 0).all():
        raise InputError("severities must be at least two positive numbers, each larger than the one before")
    return steps


def _sweep_interval(
    samples: Sequence[npt.ArrayLike],
    figure: Callable[[Floats], Floats],
    seed: int,
    confidence: float,
    resamples: int,
) -> Estimate:
    """A figure of the mean accuracy at each severity; injections are resampled within their severity."""
    if len(samples) == 0:
        raise InputError("there is no severity in the sweep: give one sample of accuracies for each")
    arrays = [floats(sample, f"sample {i}", dimensions=1) for i, sample in enumerate(samples)]
    rng = generator(seed, 0, "fragility")
    resampled = []
    for batch in batches(resamples, max(array.size for array in arrays)):
        means = [array[rng.integers(array.size, size=(batch, array.size))].mean(axis=1) for array in arrays]
        resampled.append(figure(np.stack(means, axis=-1)))
    low, high = percentile_bounds(np.concatenate(resampled), confidence)
    estimate = float(figure(np.array([array.mean() for array in arrays])))
    return Estimate(estimate, low, high, sum(array.size for array in arrays))
