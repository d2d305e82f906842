"""ReaLM's rule by hand and against the region it is drawn from; regions for parts; fits."""

from math import inf, log2

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.hardware import CriticalRegion, fit_region, matrix_sum_deviation, signed_sum_deviation

RESILIENT = CriticalRegion(a=1.46, b=24.6, theta_freq=7.5)
SENSITIVE = CriticalRegion(a=1.6, b=26.0)

regions = st.builds(CriticalRegion, st.floats(1.05, 4), st.floats(5, 60), st.one_of(st.just(-inf), st.floats(-1, 9)))


def alike(size: int, columns: int, length: int = 4096) -> np.ndarray:
    """`columns` deviations of one size."""
    differences = np.zeros(length, dtype=np.int64)
    differences[:columns] = size
    return differences


def test_deviations_that_cancel_are_seen_in_absolute_terms_only() -> None:
    differences = np.array([[2**20, -(2**20), 0], [3, 4, 0]])
    assert matrix_sum_deviation(differences).tolist() == [2**21, 7]
    assert signed_sum_deviation(differences).tolist() == [0, 7]


def test_the_rule_by_hand() -> None:
    # MSD 2^20 + 2 x 2^4 is 2^20 nearly; theta_mag = 30 - 1 x 20 = 10: of the three, one deviation counts.
    region = CriticalRegion(a=2.0, b=30.0)
    differences = np.array([2**20, 2**4, -(2**4), 0])
    assert region.theta_mag(differences) == pytest.approx(10, abs=1e-3)
    assert region.effective_frequency(differences) == 1
    assert region.recovers(differences)
    assert not CriticalRegion(a=2.0, b=30.0, theta_freq=0.0).recovers(differences)
    assert CriticalRegion(a=2.0, b=30.0, theta_freq=0.0).recovers(np.array([2**20, -(2**19), 0]))


def test_as_many_columns_as_theta_freq_says_are_not_yet_enough() -> None:
    region = CriticalRegion(a=2.0, b=30.0, theta_freq=3.0)
    assert [bool(region.recovers(alike(2**28, columns))) for columns in (7, 8, 9)] == [False, False, True]
    assert not CriticalRegion(a=2.0, b=30.0, theta_freq=2000.0).recovers(alike(2**28, 9))


def test_published_examples_one_large_error_hurts_only_where_it_is_sensitive() -> None:
    assert SENSITIVE.recovers(alike(2**30, 1))
    assert not RESILIENT.recovers(alike(2**30, 1))
    assert RESILIENT.recovers(alike(2**20, 1024))
    assert not RESILIENT.recovers(alike(2**8, 4096))


@given(regions)
def test_a_clean_product_is_never_recovered(region: CriticalRegion) -> None:
    clean = np.zeros((3, 256), dtype=np.int64)
    assert region.effective_frequency(clean).tolist() == [0, 0, 0]
    assert not region.recovers(clean).any()


@given(regions, st.integers(1, 4096), st.integers(1, 2**31 - 1), st.sampled_from((1, -1)))
def test_the_rule_for_equal_errors_is_the_region(region: CriticalRegion, columns: int, size: int, sign: int) -> None:
    msd, frequency = log2(columns) + log2(size), log2(columns)
    assume(abs(frequency - region.a * msd + region.b) > 1e-6)
    assume(abs(frequency - region.theta_freq) > 1e-9)
    assert region.recovers(alike(sign * size, columns)) == region.contains(msd, frequency)


@given(regions, st.integers(1, 4096), st.integers(1, 2**31 - 1), st.integers(0, 12))
def test_even_errors_are_judged_alike_in_the_whole_and_in_a_part(
    region: CriticalRegion, columns: int, size: int, halvings: int
) -> None:
    share = 0.5**halvings
    assume(columns * share >= 1 and columns * share == int(columns * share))
    whole, part = alike(size, columns), alike(size, int(columns * share))
    assert region.scaled(share).theta_mag(part) == pytest.approx(float(region.theta_mag(whole)), abs=1e-9)
    assume(abs(log2(size) - float(region.theta_mag(whole))) > 1e-6)
    assume(abs(log2(columns) - region.theta_freq) > 1e-9)
    assert region.scaled(share).recovers(part) == region.recovers(whole)


@given(regions, st.integers(1, 512), st.integers(1, 2**31 - 1), st.integers(0, 3), st.integers(0, 512))
def test_a_part_with_more_than_its_share_of_a_critical_whole_is_recovered(
    region: CriticalRegion, columns: int, size: int, halvings: int, more: int
) -> None:
    whole = alike(size, columns * 2**halvings)
    assume(region.recovers(whole))
    assume(abs(log2(size) - float(region.theta_mag(whole))) > 1e-6)
    assume(abs(log2(columns) + halvings - region.theta_freq) > 1e-9)
    assert region.scaled(0.5**halvings).recovers(alike(size, columns + more))


@given(regions, st.floats(0.01, 1), st.floats(0.01, 1))
def test_parts_of_parts_are_parts(region: CriticalRegion, one: float, other: float) -> None:
    twice, once = region.scaled(one).scaled(other), region.scaled(one * other)
    assert (twice.a, twice.b, twice.theta_freq) == pytest.approx((once.a, once.b, once.theta_freq))


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_part_is_some_of_the_whole(share: float) -> None:
    with pytest.raises(InputError, match="share"):
        RESILIENT.scaled(share)


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (float("nan"), 3.0), (inf, 3.0), (2.0, float("nan")), (2.0, -inf)])
def test_regions_that_are_none_are_refused(a: float, b: float) -> None:
    with pytest.raises(InputError, match="a > 1"):
        CriticalRegion(a, b)


MSD, FREQUENCY = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(8, 32), np.arange(0, 15)))


@given(st.floats(1.1, 3), st.floats(20, 40), st.one_of(st.just(-inf), st.integers(0, 9).map(lambda y: y + 0.5)))
def test_a_planted_region_is_found_wherever_the_grid_can_tell(a: float, b: float, theta: float) -> None:
    planted = CriticalRegion(a, b, theta)
    acceptable = ~planted.contains(MSD, FREQUENCY)
    assume(not acceptable.all())
    assume(acceptable[theta < FREQUENCY].any())
    assert (fit_region(MSD, FREQUENCY, acceptable).contains(MSD, FREQUENCY) == ~acceptable).all()


# Any verdicts, and one point of either kind between which a line fits.
verdicts = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 14), st.booleans()), max_size=25).map(
    lambda points: [*points, (0.0, 14.0, True), (40.0, 7.0, False)]
)


@given(verdicts)
def test_no_harmful_point_is_accepted_whatever_the_verdicts(points: list[tuple[float, float, bool]]) -> None:
    msd, frequency, acceptable = (np.array(column) for column in zip(*points, strict=True))
    region = fit_region(msd, frequency, acceptable)
    assert region.a > 1
    assert region.contains(msd, frequency)[~acceptable].all()


@given(verdicts, st.floats(1.01, 8))
def test_no_other_line_accepts_more(points: list[tuple[float, float, bool]], a: float) -> None:
    msd, frequency, acceptable = (np.array(column) for column in zip(*points, strict=True))
    msd, frequency = msd.round(), frequency.round()
    region = fit_region(msd, frequency, acceptable)
    # The farthest right that a line of this slope may lie.
    other = CriticalRegion(a, float((a * msd - frequency)[~acceptable].min()) - 1e-9, region.theta_freq)
    recovered = [one.contains(msd, frequency)[acceptable].sum() for one in (region, other)]
    assert recovered[0] <= recovered[1]


def test_without_a_lower_frequency_one_column_is_enough() -> None:
    region = fit_region([20.0, 30.0, 20.0, 30.0], [0.0, 0.0, 5.0, 5.0], [True, False, True, False])
    assert region.theta_freq == -inf
    assert region.recovers(alike(2**30, 1))


def test_the_line_keeps_its_distance_from_both_kinds() -> None:
    region = fit_region([20.0, 30.0], [3.0, 3.0], [True, False])
    assert (region.a * 25 - region.b) == pytest.approx(3.0)


@pytest.mark.parametrize("verdict", [True, False])
def test_a_grid_without_a_border_is_refused(verdict: bool) -> None:
    with pytest.raises(InputError, match="border"):
        fit_region([20.0, 30.0], [3.0, 3.0], [verdict, verdict])


def test_grids_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(InputError, match="one finite log2 MSD"):
        fit_region([20.0, 30.0], [3.0], [True, False])
    with pytest.raises(InputError, match="one finite log2 MSD"):
        fit_region([20.0, inf], [3.0, 3.0], [True, False])
    with pytest.raises(InputError, match="frequencies that do harm"):
        fit_region([20.0, 30.0], [3.0, 5.0], [True, False])
