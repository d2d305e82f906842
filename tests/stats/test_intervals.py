"""Intervals and sizing against their definitions and published tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from aftershock.errors import InputError
from aftershock.stats import rule_of_three, sample_size, sample_size_relative, upper_bound, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
confidences = st.floats(0.5, 0.999)


@given(counts, confidences)
def test_wilson_agrees_with_scipy(count: tuple[int, int], confidence: float):
    found = wilson(*count, confidence)
    expected = binomtest(*count).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.estimate == count[0] / count[1]
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.n == count[1]


@given(counts)
def test_wilson_bounds_are_the_rates_that_the_score_test_just_accepts(count: tuple[int, int]):
    successes, n = count
    found = wilson(successes, n)
    for bound in {found.low, found.high} - {0.0, 1.0, found.estimate}:
        score = abs(found.estimate - bound) / math.sqrt(bound * (1 - bound) / n)
        assert score == pytest.approx(norm.ppf(0.975), rel=1e-6)


def test_no_event_in_three_thousand():
    assert wilson(0, 3000).high == pytest.approx(0.00128, abs=1e-5)
    assert rule_of_three(3000) == pytest.approx(0.000998, abs=1e-6)


@given(st.integers(1, 100_000), confidences)
def test_rule_of_three_is_where_no_event_becomes_unlikely(n: int, confidence: float):
    assert (1 - rule_of_three(n, confidence)) ** n == pytest.approx(1 - confidence, rel=1e-6)


@given(st.integers(30, 100_000))
def test_rule_of_three_is_close_to_three_over_n(n: int):
    assert rule_of_three(n) == pytest.approx(3 / n, rel=0.06)


@pytest.mark.parametrize(
    ("margin", "rate", "at_95", "at_99"),
    [
        (0.05, 0.5, 385, 664),
        (0.03, 0.5, 1068, 1843),
        (0.01, 0.5, 9604, 16587),
        (0.001, 0.5, 960_393, 1_658_665),
        (0.01, 0.01, 381, 657),
    ],
)
def test_sample_sizes_for_eight_billion_bfloat16_weights(margin: float, rate: float, at_95: int, at_99: int):
    bits = 128_000_000_000
    assert sample_size(bits, margin, 0.95, rate) == at_95
    assert sample_size(bits, margin, 0.99, rate) == at_99


@given(st.integers(1, 10**6), st.floats(0.001, 0.2))
def test_sample_size_is_the_smallest_that_meets_the_margin(population: int, margin: float):
    """Margin of n draws without replacement: t sqrt(p (1 - p) / n (N - n) / (N - 1))."""
    n = sample_size(population, margin)
    assert 1 <= n <= population

    def reached(size: int) -> float:
        return 1.96 * math.sqrt(0.25 / size * (population - size) / max(population - 1, 1))

    assert reached(n) <= margin * (1 + 1e-9)
    assert n == 1 or reached(n - 1) >= margin * (1 - 1e-9)


@pytest.mark.parametrize(("rate", "relative_error", "expected"), [(0.5, 0.1, 385), (0.001, 0.1, 383_776)])
def test_relative_sizes(rate: float, relative_error: float, expected: int):
    assert sample_size_relative(rate, relative_error) == expected
    spread = 1.96 * math.sqrt(rate * (1 - rate) / expected)
    assert spread == pytest.approx(relative_error * rate, rel=0.01)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, 2, 1.0),
        lambda: rule_of_three(0),
        lambda: rule_of_three(5, 0.0),
        lambda: sample_size(0, 0.1),
        lambda: sample_size(10, 0.0),
        lambda: sample_size(10, 0.1, rate=1.0),
        lambda: sample_size_relative(0.0, 0.1),
        lambda: sample_size_relative(0.1, 0.0),
        lambda: sample_size_relative(0.1, 0.1, np.nan),
    ],
)
def test_impossible_input_is_refused(refused):
    with pytest.raises(InputError):
        refused()


def test_upper_bounds_are_those_of_students_t() -> None:
    assert upper_bound([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(3 + 2.131847 * 1.5811388 / 5**0.5, rel=1e-6)
    assert upper_bound([1.0]) == math.inf
    assert upper_bound([1.0, math.inf]) == math.inf
    with pytest.raises(InputError, match="confidence"):
        upper_bound([1.0, 2.0], 1.0)
