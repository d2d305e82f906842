"""Trials go where they teach most, and no stratum is forgotten."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.stats import design_of, items_per_fault, neyman_allocation, stratum_variances

positive = st.floats(1e-6, 1.0)


@settings(max_examples=50)
@given(st.lists(st.tuples(positive, st.floats(0, 1)), min_size=1, max_size=30), st.integers(0, 500))
def test_all_trials_are_given_out_and_every_stratum_gets_one(strata, more):
    chances, spreads = np.array(strata).T
    counts = neyman_allocation(chances, spreads, chances.size + more)
    assert counts.sum() == chances.size + more
    assert counts.min() >= 1


def test_a_spread_too_small_to_add_up_is_a_spread_all_the_same():
    assert neyman_allocation([1.0, 1.0], [0.0, 5e-324], 3).tolist() == [1, 2]
    assert neyman_allocation([1.0], [5e-324], 2).tolist() == [2]


def test_equal_spreads_give_proportional_numbers():
    assert neyman_allocation([0.2, 0.3, 0.5], [0.4, 0.4, 0.4], 1000).tolist() == [200, 300, 500]


def test_nothing_seen_gives_proportional_numbers():
    assert neyman_allocation([0.25, 0.75], [0.0, 0.0], 100).tolist() == [25, 75]


def test_half_goes_by_spread_half_in_proportion():
    counts = neyman_allocation([0.9, 0.1], [0.0, 0.5], 1000)
    assert counts == pytest.approx([450, 550], abs=1)


def test_the_floor_bounds_every_weight():
    chances = np.array([0.5, 0.3, 0.2])
    counts = neyman_allocation(chances, [0.0, 0.0, 0.5], 10_000, floor=0.25)
    assert (chances * 10_000 / counts).max() <= 4.01


def test_neyman_leaves_the_smallest_variance():
    chances, spreads = np.array([0.7, 0.2, 0.1]), np.array([0.05, 0.3, 0.5])
    counts = neyman_allocation(chances, spreads, 10_000, floor=0.001)

    def variance(numbers):
        return float((chances**2 * spreads**2 / numbers).sum())

    for i, j in [(0, 1), (1, 2), (2, 0)]:
        moved = counts.astype(float)
        moved[i] += 300
        moved[j] -= 300
        assert variance(moved) > variance(counts)


def test_variances_are_of_the_shares_within_a_stratum():
    shares = np.tile([0.0, 1.0], 500).tolist() + [0.5] * 1000
    found = stratum_variances(shares, design_of(["wide"] * 1000 + ["narrow"] * 1000, np.full(2000, 0.5)))
    assert found == pytest.approx([0.25, 0.0], abs=0.001)
    assert found.min() > 0


def test_a_stratum_seen_little_is_not_believed():
    design = design_of(["much"] * 100 + ["little"] * 2, np.full(102, 0.5))
    shares = np.append(np.tile([0.0, 1.0], 50), [0.0, 0.0])
    much, little = stratum_variances(shares, design)
    assert little > 0.3 * much


@settings(max_examples=50)
@given(st.floats(0.02, 0.98), st.floats(0.1, 10), st.floats(0.01, 1))
def test_items_per_fault_is_the_best_split_of_a_budget(correlation, fault_cost, item_cost):
    best = items_per_fault(correlation, fault_cost, item_cost)

    def variance_of_unit_budget(items):
        return (correlation + (1 - correlation) / items) * (fault_cost + item_cost * items)

    for other in (max(1.0, best * 0.8), best * 1.25):
        assert variance_of_unit_budget(best) <= variance_of_unit_budget(other) * (1 + 1e-12)


def test_items_that_share_nothing_or_all():
    assert items_per_fault(0.0, 1.0, 1.0) == float("inf")
    assert items_per_fault(1.0, 100.0, 1.0) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: neyman_allocation([0.5, 0.5], [0.1, 0.1], 1),
        lambda: neyman_allocation([0.5, 0.0], [0.1, 0.1], 10),
        lambda: neyman_allocation([0.5, 0.5], [0.1], 10),
        lambda: neyman_allocation([1.0], [0.1], 10, floor=0.0),
        lambda: items_per_fault(1.5, 1.0, 1.0),
        lambda: items_per_fault(0.5, 0.0, 1.0),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(InputError):
        call()
