"""Differences over the floor and between studies, against enumeration and known answers."""

from dataclasses import astuple
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import beta_binomial_shares

from aftershock.errors import InputError
from aftershock.stats import (
    bootstrap_interval,
    cluster_interval,
    mcnemar,
    paired_difference,
    paired_excess,
    rate_difference,
    unpaired_difference,
)


def median(drawn: np.ndarray) -> np.ndarray:
    return np.median(drawn, axis=1)


share_lists = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=20)


def test_excess_is_the_mean_of_the_faults_own_differences():
    shares, floor = np.array([1.0, 0.5, 0.0]), np.array([[0.2, 0.4], [0.0, 0.0], [0.1, 0.1]])
    found = paired_excess(shares, floor, seed=1)
    assert found.estimate == pytest.approx(np.mean(shares - floor.mean(axis=1)))
    assert found.low < found.estimate < found.high
    assert found.n == 3


def test_excess_of_weighted_faults_is_their_weighted_mean():
    shares, floor = np.array([1.0, 0.5, 0.0]), np.array([[0.2, 0.4], [0.0, 0.0], [0.1, 0.1]])
    weights = np.array([0.1, 0.3, 0.6])
    found = paired_excess(shares, floor, seed=1, weights=weights)
    assert found.estimate == pytest.approx(weights @ (shares - floor.mean(axis=1)))
    assert found.low < found.estimate < found.high
    equal, plain = paired_excess(shares, floor, seed=1, weights=np.ones(3)), paired_excess(shares, floor, seed=1)
    assert astuple(equal) == pytest.approx(astuple(plain))


@settings(max_examples=50)
@given(share_lists, share_lists)
def test_a_difference_of_rates_is_of_their_estimates_and_mirrors(first, second):
    one, other = cluster_interval(first), cluster_interval(second)
    found, mirrored = rate_difference(one, other), rate_difference(other, one)
    assert found.difference.estimate == pytest.approx(other.estimate - one.estimate)
    assert found.difference.low <= found.difference.estimate <= found.difference.high
    assert found.difference.low == pytest.approx(-mirrored.difference.high)
    assert found.p_value == pytest.approx(mirrored.p_value)
    # The p-value and the interval speak of the same distance.
    away = found.difference.low > 1e-9 or found.difference.high < -1e-9
    assert away == (found.p_value < 0.05 - 1e-9) or abs(found.p_value - 0.05) < 1e-6


def test_a_difference_of_rates_is_that_of_two_samples():
    """Against the permutation test on the same shares."""
    before = beta_binomial_shares(91, "before", rate=0.2, correlation=0.5, items=8, shape=(400,))
    after = beta_binomial_shares(91, "after", rate=0.27, correlation=0.5, items=8, shape=(400,))
    found = rate_difference(cluster_interval(before), cluster_interval(after))
    expected = unpaired_difference(before, after, seed=1)
    assert found.difference.low == pytest.approx(expected.difference.low, abs=0.01)
    assert found.difference.high == pytest.approx(expected.difference.high, abs=0.01)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.01)


def test_excess_leaves_out_faults_without_eligible_items():
    shares, floor = np.array([1.0, np.nan, 0.5]), np.array([[0.2, 0.1], [np.nan, np.nan], [0.0, 0.3]])
    assert paired_excess(shares, floor, 3) == paired_excess(shares[[0, 2]], floor[[0, 2]], 3)


def test_no_event_still_has_a_width_close_to_the_rule_of_three():
    found = paired_excess(np.zeros(100), np.zeros((100, 10)), seed=1)
    assert found.estimate == 0
    assert -0.05 < found.low < -0.01
    assert 0.01 < found.high < 0.05


def test_a_floor_that_depends_on_the_perturbation_widens_the_excess():
    shares = np.tile([0.0, 1.0], 100)
    steady = np.full((200, 8), 0.5)
    unsteady = np.tile([0.0, 1.0], (200, 4))
    one, other = paired_excess(shares, steady, 1), paired_excess(shares, unsteady, 1)
    assert one.estimate == other.estimate == 0
    assert other.high - other.low > 1.5 * (one.high - one.low)


@given(share_lists, st.integers(0, 99))
@settings(max_examples=25)
def test_a_study_does_not_differ_from_itself(values: list[float], seed: int):
    found = paired_difference(values, values, seed, resamples=200)
    assert found.difference.estimate == 0
    assert found.p_value == 1
    assert found.difference.low <= 0 <= found.difference.high


def test_paired_p_value_against_every_exchange():
    first, second = np.array([0, 0, 0.25, 0, 0.5, 0, 0.25, 0]), np.array([0.5, 0.25, 1, 0, 0.25, 0.5, 0.25, 1])
    changes = second - first
    every = [np.dot(signs, changes) for signs in product([-1, 1], repeat=changes.size)]
    exact = np.mean([abs(one) >= abs(changes.sum()) - 1e-12 for one in every])
    assert paired_difference(first, second, 5, resamples=20_000).p_value == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (3, 3), (2, 7), (7, 2), (12, 1)])
def test_mcnemar_against_every_toss_of_the_coin(first, second):
    tosses = [sum(toss) for toss in product([0, 1], repeat=first + second)]
    exact = np.mean([abs(2 * heads - first - second) >= abs(first - second) for heads in tosses])
    assert mcnemar(first, second) == pytest.approx(exact)


def test_unpaired_p_value_against_every_deal():
    first, second = np.array([0, 0, 0.25, 0, 0.5]), np.array([0.5, 0.25, 1, 0.75])
    pooled = np.concatenate([first, second])
    every = []
    for chosen in combinations(range(9), 5):
        rest = [position for position in range(9) if position not in chosen]
        every.append(pooled[rest].mean() - pooled[list(chosen)].mean())
    exact = np.mean(np.abs(every) >= second.mean() - first.mean() - 1e-12)
    assert unpaired_difference(first, second, 5, resamples=20_000).p_value == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("compare", [paired_difference, unpaired_difference])
def test_a_large_difference_is_found_with_its_sign(compare):
    low = beta_binomial_shares(1, "low", rate=0.05, correlation=0.5, items=8, shape=(200,))
    high = beta_binomial_shares(1, "high", rate=0.4, correlation=0.5, items=8, shape=(200,))
    found = compare(low, high, 1)
    assert found.difference.low > 0.2
    assert found.p_value < 0.001
    assert compare(high, low, 1).difference.high < -0.2


def test_pairing_is_sharper_where_faults_differ_more_than_studies():
    first = beta_binomial_shares(1, "common", rate=0.3, correlation=0.9, items=8, shape=(200,))
    second = np.where(np.arange(200) % 10 == 0, 1.0, first)
    paired, unpaired = paired_difference(first, second, 1), unpaired_difference(first, second, 1)
    assert paired.difference.estimate == pytest.approx(unpaired.difference.estimate)
    assert paired.p_value < 0.01 < unpaired.p_value
    assert paired.difference.n == 200
    assert unpaired.difference.n == 400


def test_paired_faults_missing_from_either_study_are_left_out():
    found = paired_difference([0.0, np.nan, 0.5], [0.5, 1.0, np.nan], 1)
    assert found.difference.estimate == 0.5
    assert found.difference.n == 1


def test_the_seed_decides_the_interval():
    values = np.linspace(0, 1, 41) ** 2
    assert bootstrap_interval(values, median, 1) == bootstrap_interval(values, median, 1)
    assert bootstrap_interval(values, median, 1, resamples=40) != bootstrap_interval(values, median, 2, resamples=40)
    assert bootstrap_interval(values, median, 1).estimate == 0.25


def test_bootstrap_of_a_mean_has_the_standard_error_s_width():
    values = beta_binomial_shares(1, "width", rate=0.3, correlation=0.5, items=8, shape=(400,))
    found = bootstrap_interval(values, lambda drawn: drawn.mean(axis=1), 1)
    error = values.std() / np.sqrt(400)
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_bootstrap_keeps_what_belongs_to_one_fault_together():
    """A ratio of two columns that are equal fault by fault is 1 in every resample."""
    column = beta_binomial_shares(1, "rows", rate=0.3, correlation=0.5, items=8, shape=(50,)) + 1
    found = bootstrap_interval(
        np.stack([column, column], axis=1), lambda drawn: drawn[..., 0].sum(axis=1) / drawn[..., 1].sum(axis=1), 1
    )
    assert (found.estimate, found.low, found.high) == (1, 1, 1)


def test_bootstrap_does_not_depend_on_how_draws_are_cut_into_batches(monkeypatch: pytest.MonkeyPatch):
    values = beta_binomial_shares(1, "cut", rate=0.3, correlation=0.5, items=8, shape=(64,))
    whole = bootstrap_interval(values, lambda drawn: drawn.mean(axis=1), 1, resamples=500)
    monkeypatch.setattr("aftershock.stats.bootstrap._CELLS", 640)
    assert bootstrap_interval(values, lambda drawn: drawn.mean(axis=1), 1, resamples=500) == whole


@pytest.mark.parametrize(
    "refused",
    [
        lambda: paired_excess([0.1, 0.2], [[0.1]], 1),
        lambda: paired_excess([0.1], [[np.nan]], 1),
        lambda: paired_excess([0.1, 0.1], [[0.1, np.nan], [0.1, 0.1]], 1),
        lambda: paired_excess([0.1], [[1.1]], 1),
        lambda: paired_excess([np.nan], [[0.1]], 1),
        lambda: paired_difference([0.1], [0.1, 0.2], 1),
        lambda: paired_difference([np.nan], [0.1], 1),
        lambda: unpaired_difference([0.1], [2.0], 1),
        lambda: unpaired_difference([0.1], [0.2], 1, confidence=1.0),
        lambda: mcnemar(-1, 3),
        lambda: bootstrap_interval([], lambda drawn: drawn.mean(axis=1), 1),
    ],
)
def test_impossible_input_is_refused(refused):
    with pytest.raises(InputError):
        refused()
