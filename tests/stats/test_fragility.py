"""Relative change, its weighted average and the 50 % threshold, against plain arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.stats import awrcl, awrcl_interval, drop_threshold, relative_change, threshold_interval

RATES = np.array([1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
sweeps = st.lists(st.floats(0, 1), min_size=2, max_size=9)


def brute_force_threshold(severities: list[float], baseline: float, accuracies: list[float], drop: float) -> float:
    losses = [(baseline - accuracy) / baseline for accuracy in accuracies]
    if losses[0] >= drop:
        return 0.0
    for i in range(1, len(losses)):
        if losses[i] >= drop:
            part = (drop - losses[i - 1]) / (losses[i] - losses[i - 1])
            exponent = math.log10(severities[i - 1]) + part * math.log10(severities[i] / severities[i - 1])
            return 10**exponent
    return math.inf


def test_relative_change():
    np.testing.assert_allclose(relative_change(0.6, [0.6, 0.3, 0.0, 0.75]), [0, 0.5, 1, -0.25])


def test_the_published_row_that_equal_weights_explain():
    """One of nine rates at chance level, 0.25 of a baseline of 0.6, averages to 0.065."""
    assert awrcl(0.6, [0.6] * 8 + [0.25], np.ones(9)) == pytest.approx(0.0648, abs=1e-4)


@given(sweeps, st.floats(0.1, 1), st.data())
def test_awrcl_is_the_weighted_mean(accuracies: list[float], baseline: float, data: st.DataObject):
    weights = data.draw(st.lists(st.floats(0.01, 5), min_size=len(accuracies), max_size=len(accuracies)))
    expected = sum(w * (baseline - a) / baseline for w, a in zip(weights, accuracies, strict=True)) / sum(weights)
    assert awrcl(baseline, accuracies, weights) == pytest.approx(expected, abs=1e-9)
    assert awrcl(baseline, [accuracies, accuracies], weights).shape == (2,)


@given(st.lists(sweeps.filter(lambda one: len(one) == 5) | st.just([1, 1, 0.5, 0.5, 0]), max_size=6), st.floats(0.1, 1))
def test_thresholds_of_many_sweeps_are_those_of_each(sweeps_: list[list[float]], baseline: float):
    many = np.array(sweeps_).reshape(-1, 5)
    found = drop_threshold(RATES, baseline, many)
    expected = [brute_force_threshold(RATES.tolist(), baseline, one, 0.5) for one in many.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(sweeps, st.floats(0.1, 1), st.floats(0.05, 0.95))
def test_threshold_against_brute_force(accuracies: list[float], baseline: float, drop: float):
    counts = [4.0**i for i in range(len(accuracies))]
    expected = brute_force_threshold(counts, baseline, accuracies, drop)
    assert float(drop_threshold(counts, baseline, accuracies, drop)) == pytest.approx(expected, rel=1e-6)


def test_thresholds_read_from_a_sweep():
    assert drop_threshold(RATES, 0.6, [0.6, 0.6, 0.3, 0.1, 0.0]) == pytest.approx(1e-5)
    assert drop_threshold(RATES, 0.6, [0.6, 0.6, 0.6, 0.0, 0.0]) == pytest.approx(10**-4.5)
    assert drop_threshold(RATES, 0.6, [0.6, 0.6, 0.6, 0.5, 0.4]) == math.inf
    assert drop_threshold(RATES, 0.6, [0.2, 0.2, 0.2, 0.2, 0.2]) == 0
    assert drop_threshold(RATES, 0.6, [0.6, 0.2, 0.6, 0.6, 0.2]) < 1e-6


def test_the_same_curve_by_rate_and_by_count_has_the_same_threshold():
    accuracies, parameters = [0.6, 0.55, 0.4, 0.2, 0.1], 134_217_728
    by_rate = drop_threshold(RATES, 0.6, accuracies)
    assert drop_threshold(RATES * parameters, 0.6, accuracies) == pytest.approx(by_rate * parameters)


def sweep_samples(repeats: int) -> list[np.ndarray]:
    spread = np.linspace(-0.05, 0.05, repeats)
    return [np.clip(level + spread, 0, 1) for level in (0.6, 0.58, 0.4, 0.15, 0.1)]


def test_intervals_hold_the_figure_of_the_means_and_shrink_with_more_injections():
    means = [sample.mean() for sample in sweep_samples(5)]
    few = threshold_interval(RATES, 0.6, sweep_samples(5), seed=1)
    many = threshold_interval(RATES, 0.6, sweep_samples(80), seed=1)
    assert few.estimate == pytest.approx(float(drop_threshold(RATES, 0.6, means)))
    assert few.low < few.estimate < few.high
    assert many.high / many.low < few.high / few.low
    assert few.n == 25

    average = awrcl_interval(0.6, sweep_samples(5), np.ones(5), seed=1)
    assert average.estimate == pytest.approx(float(awrcl(0.6, means, np.ones(5))))
    assert average.low < average.estimate < average.high


def test_a_threshold_that_may_lie_beyond_the_sweep_says_so():
    samples = [np.full(8, 0.6), np.full(8, 0.6), np.tile([0.2, 0.45], 4)]
    found = threshold_interval(RATES[:3], 0.6, samples, seed=1)
    assert found.high == math.inf
    assert found.low < 1e-5


def test_injections_without_spread_leave_no_doubt():
    found = threshold_interval(RATES, 0.6, [[0.6], [0.6], [0.3], [0.1], [0.0]], seed=1)
    assert found.low == found.estimate == found.high


@pytest.mark.parametrize(
    "refused",
    [
        lambda: relative_change(0.0, [0.1]),
        lambda: relative_change(math.nan, [0.1]),
        lambda: awrcl(0.5, [0.1, 0.2], [1.0]),
        lambda: awrcl(0.5, [0.1, 0.2], [1.0, -1.0]),
        lambda: awrcl(0.5, [0.1, 0.2], [0.0, 0.0]),
        lambda: drop_threshold([1e-3], 0.5, [0.1]),
        lambda: drop_threshold([0.0, 1e-3], 0.5, [0.1, 0.1]),
        lambda: drop_threshold([1e-3, 1e-4], 0.5, [0.1, 0.1]),
        lambda: drop_threshold([1e-4, 1e-3], 0.5, [0.1]),
        lambda: drop_threshold([1e-4, 1e-3], 0.5, [0.1, 0.1], drop=1.0),
        lambda: threshold_interval([1e-4, 1e-3], 0.5, [[0.1], []], seed=1),
        lambda: awrcl_interval(0.5, [], [1.0], seed=1),
    ],
)
def test_impossible_input_is_refused(refused):
    with pytest.raises(InputError):
        refused()
