"""Tests from intervals: error rates under the null, pooling, Holm against its definition."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import beta_binomial_shares

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats import (
    Estimate,
    cluster_interval,
    holm,
    p_above,
    p_below,
    p_equivalent,
    pooled,
    rate_difference,
)

estimates = st.builds(
    lambda middle, down, up, n: Estimate(middle, middle - down, middle + up, n),
    st.floats(-1, 1),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(1, 1000),
)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=17)


def stratified(seed: int, rates: tuple[float, float], margin: float, *, faults: int = 60) -> tuple[float, float]:
    """P-values for a difference above 0 and within the margin, over three strata of different rates."""
    differences, weights = [], []
    for stratum, scale in enumerate((1.0, 0.5, 2.0)):
        sides = [
            cluster_interval(
                beta_binomial_shares(
                    seed, f"{stratum} {side}", rate=scale * rate, correlation=0.7, items=4, shape=(faults * (1 + side),)
                )
            )
            for side, rate in enumerate(rates)
        ]
        differences.append(rate_difference(*sides).difference)
        weights.append(sides[0].n * sides[1].n / (sides[0].n + sides[1].n))
    found = pooled(differences, np.array(weights) / sum(weights))
    return 2 * p_above(found), p_equivalent(found, margin)


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_a_stratified_difference_is_rarely_significant_where_there_is_none(rate):
    found = np.array([stratified(seed, (rate, rate), 0.1)[0] for seed in range(800)])
    # Two-sided p-values of which the upper side alone is looked at: at most 2.5 %, and three standard errors.
    assert np.mean(found < 0.05) < 0.025 + 3 * np.sqrt(0.025 * 0.975 / found.size)
    assert np.mean(found < 0.5) > 0.1  # not merely blind


def test_equivalence_is_rarely_shown_at_the_margin_and_mostly_well_inside():
    at_margin = 0.4 - 0.2  # the strata weigh the same, and their scales average 7/6
    margin = at_margin * 7 / 6
    wrong = np.array([stratified(seed, (0.2, 0.4), margin)[1] for seed in range(400)])
    assert np.mean(wrong < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / wrong.size)
    right = np.array([stratified(seed, (0.2, 0.2), margin)[1] for seed in range(100)])
    assert np.mean(right < 0.05) > 0.9


def test_seventeen_tests_without_an_effect_rarely_show_one():
    rng = generator(5, 0, "seventeen nulls")
    smallest = np.array([holm(rng.random(17)).min() for _ in range(2000)])
    assert np.mean(smallest < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / smallest.size)
    assert np.mean(smallest < 0.05) > 0.03


@given(p_lists)
def test_holm_is_its_definition(p_values):
    """Step down: the k-th smallest times the tests not yet passed, never below an earlier one (brute force)."""
    found = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        expected = max(min(1.0, (len(order) - earlier) * p_values[order[earlier]]) for earlier in range(rank + 1))
        assert found[place] == pytest.approx(expected)
    assert (found >= np.array(p_values) - 1e-12).all()
    assert all(found[one] <= found[other] for one, other in pairwise(order))


def test_holm_rejects_what_it_can_at_each_level():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    for wrong in ([], [0.5, 1.5], [-0.1]):
        with pytest.raises(InputError):
            holm(wrong)


@given(estimates, st.floats(-2, 2))
def test_p_values_and_the_interval_speak_of_the_same_distance(found, value):
    if value == found.estimate:
        assert p_above(found, value) == 0.5
    else:
        assert (p_above(found, value) < 0.025) == (value < found.low) or abs(value - found.low) < 1e-9
        assert (p_below(found, value) < 0.025) == (value > found.high) or abs(value - found.high) < 1e-9
        assert p_above(found, value) + p_below(found, value) == pytest.approx(1)


@given(estimates)
def test_equivalence_needs_both_sides(found):
    assert p_equivalent(found, 0.3) == max(p_above(found, -0.3), p_below(found, 0.3))
    with pytest.raises(InputError):
        p_equivalent(found, 0.0)


def test_bounds_without_a_width_decide():
    sure = Estimate(0.0, 0.0, 0.2, 10)
    assert p_above(sure, -0.1) == 0.0
    assert p_below(sure, -0.1) == 1.0
    assert 0.05 < p_below(sure, 0.1) < 0.5


@settings(max_examples=50)
@given(st.lists(estimates, min_size=1, max_size=5), st.floats(0.1, 3))
def test_pooling_is_linear_and_mirrors(several, factor):
    weights = np.linspace(-1, 1, len(several)) + 0.3
    one, scaled = pooled(several, weights), pooled(several, factor * weights)
    assert scaled.estimate == pytest.approx(factor * one.estimate)
    assert scaled.high - scaled.estimate == pytest.approx(factor * (one.high - one.estimate))
    mirrored = pooled(several, -weights)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-one.high), pytest.approx(-one.low))
    assert one.n == sum(part.n for part in several)


def test_pooling_two_alike_halves_the_variance():
    found = pooled([Estimate(0.2, 0.1, 0.4, 50)] * 2, [0.5, 0.5])
    assert found.low == pytest.approx(0.2 - 0.1 / np.sqrt(2))
    assert found.high == pytest.approx(0.2 + 0.2 / np.sqrt(2))
    with pytest.raises(InputError, match="give one each"):
        pooled([found], [0.5, 0.5])
