"""Rates with the fault as unit: estimates, labels, and how clustering is measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest
from simulated import beta_binomial_shares

from aftershock.errors import InputError
from aftershock.stats import Clustering, any_rate, by_label, cluster_interval, clustering, fault_shares, wilson

shares = arrays(np.float64, st.integers(1, 60), elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]))


@given(shares)
def test_each_fault_weighs_the_same(values: np.ndarray):
    found = cluster_interval(values)
    assert found.estimate == pytest.approx(values.mean())
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high
    assert found.n == values.size


@given(shares)
def test_failures_and_passes_mirror_each_other(values: np.ndarray):
    one, other = cluster_interval(values), cluster_interval(1 - values)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)


@given(shares, st.floats(0.5, 0.98))
def test_more_confidence_is_wider(values: np.ndarray, confidence: float):
    narrow, wide = cluster_interval(values, confidence), cluster_interval(values, confidence + 0.01)
    assert wide.high - wide.low > narrow.high - narrow.low


@given(shares, st.integers(0, 9))
def test_faults_without_eligible_items_are_left_out(values: np.ndarray, missing: int):
    padded = np.concatenate([np.full(missing, np.nan), values])
    assert cluster_interval(padded) == cluster_interval(values)
    assert any_rate(padded) == any_rate(values)


def test_all_or_nothing_faults_are_a_binomial_sample():
    values = np.arange(100) < 20
    found, expected = cluster_interval(values), wilson(20, 100)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_rare_all_or_nothing_faults_have_the_exact_interval(failed: int):
    found = cluster_interval(np.arange(100) < failed)
    expected = binomtest(failed, 100).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_items_that_do_not_share_their_fault_s_fate_narrow_the_interval():
    """At no correlation 100 faults of 16 items know the rate nearly as well as 1600 independent tries."""
    values = beta_binomial_shares(1, "independent", rate=0.3, correlation=1e-9, items=16, shape=(100,))
    width = cluster_interval(values).high - cluster_interval(values).low
    independent = wilson(480, 1600)
    assert width == pytest.approx(independent.high - independent.low, rel=0.25)


def test_a_few_equal_shares_prove_no_precision():
    found = cluster_interval([0.5, 0.5])
    assert found.high - found.low > 0.5


def test_any_rate_counts_faults():
    assert any_rate([0.0, 0.1, 1.0, 0.0]) == wilson(2, 4)


def test_shares_of_counts():
    np.testing.assert_array_equal(fault_shares([0, 1, 0], [4, 2, 0]), [0.0, 0.5, np.nan])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0, np.nan])), max_size=40))
def test_labels_are_estimated_apart(pairs: list[tuple[str, float]]):
    found = by_label([label for label, _ in pairs], np.array([share for _, share in pairs]))
    for label in "abc":
        own = [share for other, share in pairs if other == label and not np.isnan(share)]
        assert (label in found) == bool(own)
        if own:
            assert found[label] == cluster_interval(own)


def brute_force_correlation(hits: list[int], sizes: list[int]) -> float:
    """One-way analysis of variance on the single outcomes, spelled out."""
    groups = [[1] * hit + [0] * (size - hit) for hit, size in zip(hits, sizes, strict=True)]
    flat = [outcome for group in groups for outcome in group]
    grand = sum(flat) / len(flat)
    means = [sum(group) / len(group) for group in groups]
    between = sum(len(group) * (mean - grand) ** 2 for group, mean in zip(groups, means, strict=True))
    within = sum((outcome - mean) ** 2 for group, mean in zip(groups, means, strict=True) for outcome in group)
    k, total = len(groups), len(flat)
    size = (total - sum(len(group) ** 2 for group in groups) / total) / (k - 1)
    mean_between, mean_within = between / (k - 1), within / (total - k)
    return (mean_between - mean_within) / (mean_between + (size - 1) * mean_within)


faults = st.integers(1, 12).flatmap(lambda size: st.tuples(st.integers(0, size), st.just(size)))


@given(st.lists(faults, min_size=2, max_size=30))
def test_correlation_is_that_of_the_analysis_of_variance(pairs: list[tuple[int, int]]):
    hits, sizes = [hit for hit, _ in pairs], [size for _, size in pairs]
    found = clustering(hits, sizes)
    if 0 < sum(hits) < sum(sizes) and max(sizes) > 1:
        expected = min(max(brute_force_correlation(hits, sizes), 0), 1)
        assert found.intracluster_correlation == pytest.approx(expected, abs=1e-9)
    else:
        assert found.intracluster_correlation == 1
    assert found.effective_items * found.design_effect == pytest.approx(found.items)


@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.9])
def test_correlation_is_recovered_from_synthetic_faults(correlation: float):
    values = beta_binomial_shares(2, "recover", rate=0.3, correlation=correlation, items=8, shape=(4000,))
    found = clustering(values * 8, np.full(4000, 8))
    assert found.intracluster_correlation == pytest.approx(correlation, abs=0.05)
    assert found.design_effect == pytest.approx(1 + 7 * correlation, abs=0.35)


def test_a_thousand_faults_of_a_hundred_items_are_worth_two_thousand():
    """At a correlation of one half: 1000 x 100 / (1 + 99 x 0.5)."""
    values = beta_binomial_shares(2, "worth", rate=0.5, correlation=0.5, items=100, shape=(1000,))
    assert clustering(values * 100, np.full(1000, 100)).effective_items == pytest.approx(1980, rel=0.1)


def test_faults_without_items_do_not_cluster():
    assert clustering([2, 0, 0], [2, 2, 0]) == Clustering(2, 4, 1.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: cluster_interval([]),
        lambda: cluster_interval([np.nan]),
        lambda: cluster_interval([0.5, 1.5]),
        lambda: cluster_interval([[0.5]]),
        lambda: cluster_interval([0.5], 1.0),
        lambda: any_rate([-0.1]),
        lambda: by_label(["a"], [0.1, 0.2]),
        lambda: fault_shares([3], [2]),
        lambda: fault_shares([1, 1], [2]),
        lambda: clustering([0], [0]),
        lambda: clustering([np.nan], [1]),
    ],
)
def test_impossible_input_is_refused(refused):
    with pytest.raises(InputError):
        refused()
