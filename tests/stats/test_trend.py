"""The rank trend against counting pairs, and its interval against the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import somersd

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats import rank_trend

pairs = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.25, 1.0])), min_size=2, max_size=25).filter(
    lambda drawn: 0 < sum(share for _, share in drawn) < len(drawn)
)


@given(pairs)
def test_it_counts_pairs_of_a_failure_and_a_survivor(drawn):
    places, shares = np.array(drawn).T
    weights = np.outer(shares, 1 - shares)
    order = np.sign(places[:, None] - places[None, :])
    assert rank_trend(places, shares).estimate == pytest.approx((weights * order).sum() / weights.sum())


def test_it_is_somers_d_where_faults_fail_all_or_nothing():
    rng = generator(1, 0, "trend")
    places, failed = rng.integers(12, size=300), rng.random(300) < 0.2
    assert rank_trend(places, failed).estimate == pytest.approx(somersd(failed, places).statistic)


def test_extremes_mirrors_and_weights():
    places, shares = [0, 1, 2, 3], [0.0, 0.0, 1.0, 1.0]
    assert rank_trend(places, shares).estimate == 1
    assert rank_trend([-place for place in places], shares).estimate == -1
    twice = rank_trend([0, 1, 1, 2, 3], [0.0, 1.0, 1.0, 0.0, 1.0]).estimate
    assert rank_trend([0, 1, 2, 3], [0.0, 1.0, 0.0, 1.0], weights=[1, 2, 1, 1]).estimate == pytest.approx(twice)
    assert rank_trend([0, 1, 2], [0.0, 1.0, np.nan]).n == 2


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_the_interval_covers_whatever_the_rate(rate, slope):
    """Failures `1 + slope x (depth - 1/2)` times as likely at a relative depth: the truth by a sample of a million."""
    rng = generator(2, 0, "coverage of the trend")

    def drawn(faults):
        places = rng.integers(12, size=faults)
        return places, rng.random(faults) < rate * (1 + slope * (places / 11 - 0.5))

    truth = rank_trend(*drawn(10**6)).estimate
    found = [rank_trend(*drawn(800)) for _ in range(800)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.03)
    if slope == 0:
        assert truth == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("places", "shares"), [([1, 2], [0.0, 0.0]), ([1, 2], [1.0, 1.0]), ([1, 2, 3], [0.0, 1.0]), ([], [])]
)
def test_no_contrast_is_refused(places, shares):
    with pytest.raises(InputError):
        rank_trend(places, shares)
