"""Intervals hold what they promise: coverage of the true rate, exact where it can be computed, simulated elsewhere."""

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import binom
from simulated import beta_binomial_shares

from aftershock.stats import Estimate, bootstrap_interval, cluster_interval, paired_difference, paired_excess

ORDINARY = [0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
RARE = [0.00001, 0.0001, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.012, 0.015, 0.018]


def covers(interval: Estimate, truth: float) -> bool:
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("faults", [100, 200, 400, 1000])
def test_exact_coverage_when_each_fault_fails_all_items_or_none(faults: int):
    """Every possible study weighed by its probability: no sampling error."""
    intervals = [cluster_interval(np.arange(faults) < failed) for failed in range(faults + 1)]
    low = np.array([one.low for one in intervals])
    high = np.array([one.high for one in intervals])

    def coverage(rate: float) -> float:
        return float(binom.pmf(np.arange(faults + 1), faults, rate) @ ((low <= rate) & (rate <= high)))

    for rate in ORDINARY:
        assert 0.93 <= coverage(rate) <= 0.97, rate
        assert coverage(1 - rate) == pytest.approx(coverage(rate), abs=1e-9), rate
    for rate in RARE:
        assert coverage(rate) >= 0.95, rate


REPLICATIONS = 1200
SAMPLING_ERROR = 3 * np.sqrt(0.05 * 0.95 / REPLICATIONS)


def simulated_coverage(rate: float, correlation: float, items: int, faults: int) -> float:
    shares = beta_binomial_shares(
        11,
        f"{rate} {correlation} {items} {faults}",
        rate=rate,
        correlation=correlation,
        items=items,
        shape=(REPLICATIONS, faults),
    )
    return float(np.mean([covers(cluster_interval(one), rate) for one in shares]))


@pytest.mark.parametrize("correlation", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("items", [1, 8, 32])
def test_coverage_of_clustered_outcomes(correlation: float, items: int):
    found = {rate: simulated_coverage(rate, correlation, items, 100) for rate in (0.02, 0.05, 0.2, 0.5)}
    assert all(0.93 - SAMPLING_ERROR <= one <= 0.97 + SAMPLING_ERROR for one in found.values()), found
    assert 0.93 <= np.mean(list(found.values())) <= 0.97, found


@pytest.mark.parametrize("correlation", [0.5, 0.9])
@pytest.mark.parametrize("items", [4, 32])
def test_coverage_of_rare_clustered_outcomes(correlation: float, items: int):
    found = {
        (rate, faults): simulated_coverage(rate, correlation, items, faults)
        for rate, faults in [(0.001, 100), (0.005, 100), (0.01, 100), (0.01, 300)]
    }
    assert all(one >= 0.95 - SAMPLING_ERROR for one in found.values()), found
    assert np.mean(list(found.values())) >= 0.95, found


def test_a_naive_interval_fails_the_same_simulation():
    """The reason for counting faults: with (fault, item) pairs as the unit the 95 % interval covers about a third."""
    shares = beta_binomial_shares(3, "naive", rate=0.1, correlation=0.8, items=32, shape=(400, 100))
    error = 1.96 * np.sqrt(shares.mean(axis=1) * (1 - shares.mean(axis=1)) / 3200)
    assert np.mean(np.abs(shares.mean(axis=1) - 0.1) <= error) < 0.6


def test_coverage_of_the_bootstrap_over_faults():
    shares = beta_binomial_shares(4, "bootstrap", rate=0.2, correlation=0.5, items=8, shape=(300, 150))
    found = np.mean(
        [
            covers(bootstrap_interval(one, lambda drawn: drawn.mean(axis=1), seed, resamples=400), 0.2)
            for seed, one in enumerate(shares)
        ]
    )
    assert 0.95 - 0.04 <= found <= 0.95 + 0.04


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
def test_coverage_of_the_excess_over_the_floor(rate: float):
    """The faults' rate is `rate` above a floor of 0.05 that each of 20 perturbations measures on the same items."""
    faults, perturbations, studies = 120, 20, 200
    total = rate + 0.05
    shares = beta_binomial_shares(5, f"excess {rate}", rate=total, correlation=0.5, items=8, shape=(studies, faults))
    floors = beta_binomial_shares(
        6, f"floor {rate}", rate=0.05, correlation=0.05, items=8, shape=(studies, faults, perturbations)
    )
    found = np.mean(
        [
            covers(paired_excess(one, floor, seed, resamples=400), rate)
            for seed, (one, floor) in enumerate(zip(shares, floors, strict=True))
        ]
    )
    assert found >= 0.95 - 0.045


def test_coverage_and_level_of_the_paired_difference():
    shares = beta_binomial_shares(7, "paired", rate=0.1, correlation=0.5, items=8, shape=(2, 300, 120))
    compared = [paired_difference(*pair, seed, resamples=400) for seed, pair in enumerate(zip(*shares, strict=True))]
    assert 0.91 <= np.mean([covers(one.difference, 0.0) for one in compared]) <= 0.99
    assert np.mean([one.p_value <= 0.05 for one in compared]) <= 0.05 + 0.038


def test_simulated_shares_have_the_promised_rate_and_correlation():
    """The simulation itself, against the beta-binomial probability of no failure."""
    shares = beta_binomial_shares(8, "check", rate=0.2, correlation=0.5, items=4, shape=(200_000,))
    expected = np.exp(betaln(0.2, 4.8) - betaln(0.2, 0.8))
    assert np.mean(shares == 0) == pytest.approx(expected, abs=0.005)
    assert shares.mean() == pytest.approx(0.2, abs=0.005)
