"""Schemes on the same tiles, what they cost, and the published points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.hardware import (
    CHECKSUM_POWER,
    TABLE_II,
    ApproxABFT,
    ClassicalABFT,
    CriticalRegion,
    Duplication,
    Gemm,
    Scheme,
    StatisticalABFT,
    SystolicArray,
    TileErrors,
    Unprotected,
    Zeroing,
    best_point,
    draw_faults,
    multiply,
    relative_energy,
    saving,
)
from aftershock.numerics import generator

REGION = CriticalRegion(a=1.5, b=25.0, theta_freq=1.0)
SCHEMES: tuple[Scheme, ...] = (
    Unprotected(),
    Zeroing(),
    Duplication(),
    ClassicalABFT(),
    ApproxABFT(threshold=2**20),
    StatisticalABFT(REGION),
)
schemes = st.sampled_from(SCHEMES)
voltages = st.floats(0.5, 0.9)
shares = st.floats(0, 1)

# Clean; one small error; two that cancel in their column; one large; many large.
TILES = TileErrors(
    np.array([[0] * 8, [4] + [0] * 7, [0] * 8, [2**30] + [0] * 7, [-(2**28)] * 8]),
    np.array([False, True, True, True, True]),
)


@pytest.mark.parametrize(
    ("scheme", "recomputed"),
    [
        (Unprotected(), [0, 0, 0, 0, 0]),
        (Zeroing(), [0, 0, 0, 0, 0]),
        (Duplication(), [0, 1, 1, 1, 1]),
        (ClassicalABFT(), [0, 1, 0, 1, 1]),
        (ApproxABFT(threshold=2**20), [0, 0, 0, 1, 1]),
        (StatisticalABFT(REGION), [0, 0, 0, 0, 1]),
    ],
    ids=lambda value: value.name if isinstance(value, Scheme) else "",
)
def test_what_each_scheme_recomputes(scheme: Scheme, recomputed: list[int]) -> None:
    assert scheme.recomputed(TILES).tolist() == [bool(one) for one in recomputed]


def test_shares_count_tiles_and_duplication_counts_errors_of_both_runs() -> None:
    assert ClassicalABFT().share(TILES) == 3 / 5
    assert Duplication().share(TILES) == pytest.approx(1 - (1 / 5) ** 2)


@given(st.integers(0, 200), st.floats(0, 1e-2))
def test_tolerant_schemes_recompute_a_part_of_what_classical_ones_do(seed: int, rate: float) -> None:
    array, gemm = SystolicArray("weight-stationary", 16, 16), Gemm(40, 40, 40)
    random = generator(seed, 0, "operands")
    weight, inputs = (random.integers(-128, 128, (40, 40), dtype=np.int8) for _ in range(2))
    tiles = multiply(array, weight, inputs, draw_faults(array, gemm, rate, seed, 0)).tiles
    classical = ClassicalABFT().recomputed(tiles)
    for scheme in (ApproxABFT(threshold=2**20), StatisticalABFT(REGION)):
        assert not (scheme.recomputed(tiles) & ~classical).any()
    assert not (classical & ~Duplication().recomputed(tiles)).any()


def test_energy_at_nominal_voltage_is_one_and_falls_with_its_square() -> None:
    assert relative_energy(Unprotected(), 0.9, 0.0) == pytest.approx(1)
    assert relative_energy(Unprotected(), 0.45, 0.0) == pytest.approx(0.25)
    assert relative_energy(ClassicalABFT(), 0.45, 0.1) == pytest.approx(1.0182 * 0.35)
    assert relative_energy(ClassicalABFT(overhead=0.0179), 0.45, 0.1) == pytest.approx(1.0179 * 0.35)
    assert relative_energy(Duplication(), 0.45, 0.1) == pytest.approx(0.6)


@given(schemes, voltages, voltages, shares, shares)
def test_energy_grows_with_voltage_and_with_recomputation(
    scheme: Scheme, one: float, other: float, share: float, more: float
) -> None:
    low, high = sorted((one, other))
    few, many = sorted((share, more))
    assert (
        relative_energy(scheme, low, few) <= relative_energy(scheme, high, few) <= relative_energy(scheme, high, many)
    )


def test_the_best_point_weighs_voltage_against_recomputation() -> None:
    volts, share = [0.9, 0.8, 0.7, 0.6], [0.0, 0.01, 0.05, 0.9]
    best = best_point(Unprotected(), volts, share, [True] * 4)
    assert best.voltage == 0.7
    assert best.energy == pytest.approx((7 / 9) ** 2 + 0.05)
    assert best_point(Unprotected(), volts, share, [True, True, False, True]).voltage == 0.8


def test_what_has_no_meaning_is_refused() -> None:
    for volts in (0.0, 0.91, float("nan")):
        with pytest.raises(InputError, match="voltages above 0 up to nominal"):
            relative_energy(Unprotected(), volts, 0.0)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="share of tiles"):
            relative_energy(Unprotected(), 0.8, share)
    with pytest.raises(InputError, match="no voltage is acceptable"):
        best_point(Unprotected(), [0.9, 0.8], [0.0, 0.0], [False, False])
    with pytest.raises(InputError, match="clean tiles"):
        ApproxABFT(threshold=0)
    with pytest.raises(InputError, match="overhead"):
        Zeroing(overhead=-0.1)


def test_saving_is_relative_to_its_reference() -> None:
    assert saving([0.6, 0.9], 0.8) == pytest.approx([0.25, -0.125])


def test_every_published_saving_was_won_against_prior_art_near_084_of_nominal_energy() -> None:
    prior = {(point.model, point.component): round(point.prior_energy, 3) for point in TABLE_II}
    assert len(prior) == len(TABLE_II) == 17
    assert prior["OPT-1.3B", "v"] == 0.813
    assert prior["LLaMA-3-8B", "sv"] == 0.821
    assert all(0.80 <= energy <= 0.88 for energy in prior.values())


def test_published_overheads_are_those_of_either_dataflow() -> None:
    assert ClassicalABFT().overhead == StatisticalABFT(REGION).overhead == CHECKSUM_POWER["weight-stationary"]
    assert CHECKSUM_POWER["output-stationary"] < CHECKSUM_POWER["weight-stationary"]
