"""Stratified and weighted samples: the right mean, and intervals that hold also for rare events."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from simulated import beta_binomial_shares, stratified_study

from aftershock.errors import InputError
from aftershock.stats import (
    Design,
    design_of,
    effective_sample_size,
    importance_interval,
    rule_of_three,
    weighted_by_label,
    weighted_interval,
)


def test_each_stratum_counts_by_its_share_of_the_population():
    design = design_of(["rare"] * 2 + ["common"] * 2, [0.1, 0.1, 0.9, 0.9])
    found = weighted_interval([1.0, 0.5, 0.0, 0.2], design)
    assert found.estimate == pytest.approx(0.1 * 0.75 + 0.9 * 0.1)
    assert found.n == 4
    assert design.weights == pytest.approx([0.2, 0.2, 1.8, 1.8])


def test_every_round_estimates_by_itself():
    design = design_of(["a", "b", "b", "a", "a", "b"], [0.5] * 6, [0, 0, 0, 1, 1, 1])
    shares = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0]
    first, second = 0.5 * 1 + 0.5 * 0.25, 0.5 * 0.5 + 0.5 * 1
    assert weighted_interval(shares, design).estimate == pytest.approx((3 * first + 3 * second) / 6)


def test_a_proportional_sample_weighs_all_alike():
    design = design_of(["a"] * 3 + ["b"] * 6, [0.25] * 3 + [0.5] * 6)
    assert design.weights == pytest.approx(np.ones(9))
    assert effective_sample_size(design.weights) == pytest.approx(9)


def test_what_lies_between_strata_costs_no_width():
    shares = np.repeat([0.0, 1.0], 50)
    apart = weighted_interval(shares, design_of(shares.tolist(), np.full(100, 0.5)))
    together = weighted_interval(shares, design_of(["all"] * 100, np.ones(100)))
    assert apart.estimate == together.estimate == 0.5
    assert apart.high - apart.low < 0.3 * (together.high - together.low)


def test_no_event_bounds_the_thinnest_stratum():
    design = design_of(["thin"] * 20 + ["thick"] * 180, [0.5] * 200)
    found = weighted_interval(np.zeros(200), design)
    assert found.low == 0
    assert found.high >= 0.5 * rule_of_three(20)


def test_faults_of_another_group_do_not_count():
    design = design_of(["a", "a", "b", "b"], [0.2, 0.2, 0.8, 0.8])
    groups = weighted_by_label(["x", "y", "x", "y"], [1.0, 0.0, 0.5, np.nan], design)
    assert groups["x"].estimate == pytest.approx((0.1 * 1.0 + 0.4 * 0.5) / 0.5)
    assert groups["y"].n == 1


@settings(max_examples=50)
@given(st.data())
def test_bounds_hold_the_estimate_and_order_does_not_matter(data):
    n = data.draw(st.integers(1, 40))
    names = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    shares = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=n, max_size=n)))
    chances = np.array([0.1, 0.2, 0.3, 0.4])[names]
    found = weighted_interval(shares, design_of(names, chances))
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.high > found.low
    order = np.array(data.draw(st.permutations(range(n))))
    again = weighted_interval(shares[order], design_of([names[i] for i in order], chances[order]))
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


@settings(max_examples=50)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_effective_sample_size_lies_between_one_and_all(weights):
    assert 1 - 1e-9 <= effective_sample_size(weights) <= len(weights) + 1e-9


def test_exact_coverage_of_one_stratum():
    """Every possible study of 200 all-or-nothing faults weighed by its probability."""
    n = 200
    design = design_of(["all"] * n, np.ones(n))
    intervals = [weighted_interval(np.arange(n) < failed, design) for failed in range(n + 1)]
    low, high = np.array([one.low for one in intervals]), np.array([one.high for one in intervals])
    for rate in (0.0005, 0.002, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9):
        coverage = binom.pmf(np.arange(n + 1), n, rate) @ ((low <= rate) & (rate <= high))
        assert coverage >= 0.945, rate


@pytest.mark.parametrize("correlation", [0.4, 1.0])
@pytest.mark.parametrize("rates", [(0.3, 0.1, 0.002), (0.0, 0.0, 0.004), (1.0, 0.2, 0.0)])
def test_coverage_of_a_study_allocated_by_what_it_found(rates: tuple[float, ...], correlation: float):
    chances = np.array([1, 8, 23]) / 32
    truth = chances @ rates
    studies = [
        stratified_study(21, index, chances, np.array(rates), correlation=correlation, ends=(60, 200, 400))
        for index in range(100)
    ]
    found = [weighted_interval(shares, design) for shares, design in studies]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.95 - 0.065
    estimates = np.array([one.estimate for one in found])
    assert abs(estimates.mean() - truth) <= 3.5 * estimates.std() / np.sqrt(len(found))


def test_coverage_of_importance_weights():
    """Two kinds of fault, the harmful drawn ten times too often."""
    rng = np.random.default_rng(5)
    covered = []
    for index in range(200):
        harmful = rng.random(300) < 0.5
        shares = np.where(
            harmful,
            beta_binomial_shares(31, f"harm {index}", rate=0.4, correlation=0.6, items=8, shape=(300,)),
            beta_binomial_shares(32, f"rest {index}", rate=0.01, correlation=0.6, items=8, shape=(300,)),
        )
        found = importance_interval(shares, np.where(harmful, 0.05 / 0.5, 0.95 / 0.5))
        covered.append(found.low <= 0.05 * 0.4 + 0.95 * 0.01 <= found.high)
    assert np.mean(covered) >= 0.95 - 0.046


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: design_of(["a"], [0.0]), "chance"),
        (lambda: design_of(["a", "a"], [0.1, 0.2]), "different chances"),
        (lambda: weighted_interval([np.nan], design_of(["a"], [1.0])), "no fault"),
        (lambda: weighted_interval([1.5], design_of(["a"], [1.0])), "outside 0 to 1"),
        (lambda: weighted_interval([1.0, 0.0], design_of(["a"], [1.0])), "one per fault"),
        (lambda: importance_interval([0.5], [-1.0]), "0 or more"),
        (lambda: importance_interval([0.5], [1.0, 2.0]), "one weight per fault"),
        (lambda: weighted_by_label(["x"], [0.5, 0.5], design_of(["a"], [1.0])), "one label per fault"),
        (lambda: effective_sample_size([0.0]), "not all 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_part_keeps_the_strata_that_are_left():
    design = Design(np.array([0, 1, 2, 2]), np.array([0.2, 0.3, 0.5]), np.array([0, 0, 0, 1]))
    part = design.part(np.array([True, False, True, True]))
    assert part.strata.tolist() == [0, 1, 1]
    assert part.chances.tolist() == [0.2, 0.5]
    assert part.rounds.tolist() == [0, 0, 1]
