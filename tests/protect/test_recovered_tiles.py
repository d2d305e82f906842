"""Sums of integer products judged and mended tile by tile."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.hardware import (
    ApproxABFT,
    ClassicalABFT,
    CriticalRegion,
    Dataflow,
    Duplication,
    Gemm,
    Scheme,
    StatisticalABFT,
    SystolicArray,
    Unprotected,
    Zeroing,
    draw_faults,
    multiply,
)
from aftershock.numerics import generator
from aftershock.protect import by_depth, recover, tile_deviations

ARRAY = SystolicArray("output-stationary", 8, 4)


def numbers(*shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(0, len(shape), "operands").integers(-127, 128, shape, dtype=np.int8))


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.matmul(left.double(), right.double()).to(torch.int32)


@given(
    outputs=st.integers(1, 20),
    depth=st.integers(1, 20),
    tokens=st.integers(1, 12),
    dataflow=st.sampled_from(["weight-stationary", "output-stationary"]),
)
def test_deviations_are_those_of_the_simulated_array(outputs: int, depth: int, tokens: int, dataflow: Dataflow) -> None:
    array, gemm = SystolicArray(dataflow, 8, 4), Gemm(outputs, depth, tokens)
    left, right = numbers(tokens, depth), numbers(depth, outputs)
    faults = draw_faults(array, gemm, 0.05, seed=1, index=2)
    expected = multiply(array, right.T.numpy(), left.T.numpy(), faults)
    if dataflow == "weight-stationary":
        left, right = by_depth(left, right, array)
    sums = product(left, right)
    masks = np.zeros(array.passes(gemm) * outputs * tokens, dtype=np.uint32)
    masks[faults.place] = faults.mask
    struck = torch.from_numpy(masks.view(np.int32)).view(-1, outputs, tokens).mT
    sums = (sums.view(struck.shape) ^ struck).view(sums.shape)
    assert (tile_deviations(sums, left, right, array).numpy() == expected.tiles.differences).all()
    found = recover(sums, left, right, lambda: product(left, right), ClassicalABFT(), array)
    assert (found.alarms == expected.tiles.alarms).all()
    if found.alarms.any():
        assert (found.corrupted == expected.tiles.corrupted).all()


@pytest.mark.parametrize(("lead", "shared"), [((3,), True), ((2, 3), False)])
@pytest.mark.parametrize("scheme", [ClassicalABFT(), Duplication(), Unprotected()])
def test_schemes_put_clean_sums_back_or_leave_wrong_ones(lead: tuple[int, ...], shared: bool, scheme: Scheme) -> None:
    left = numbers(*lead, 11, 6)
    right = numbers(6, 19) if shared else numbers(*lead, 6, 19)
    clean = product(left, right)
    sums = clean.clone()
    sums.view(-1)[[0, 300, 620]] ^= 1 << 20
    found = recover(sums, left, right, clean.clone, scheme, ARRAY)
    mends = not isinstance(scheme, Unprotected)
    assert torch.equal(found.sums, clean if mends else sums)
    assert found.alarms.sum() == found.corrupted.sum() == 3
    assert found.again.sum() == (3 if mends else 0)


def test_only_tiles_that_a_scheme_names_are_mended() -> None:
    left, right = numbers(8, 6), numbers(6, 16)
    clean = product(left, right)
    sums = clean.clone()
    sums[0, 0] += 100
    sums[7, 15] += 10_000
    found = recover(sums, left, right, clean.clone, ApproxABFT(5_000), ARRAY)
    assert found.again.tolist() == [False, False, False, True]
    assert found.sums[0, 0] == clean[0, 0] + 100
    assert found.sums[7, 15] == clean[7, 15]


def test_a_whole_product_is_judged_by_all_its_tiles() -> None:
    left, right = numbers(8, 6), numbers(6, 16)
    clean = product(left, right)
    sums = clean.clone()
    sums[::4, ::8] += 1 << 20
    three = StatisticalABFT(CriticalRegion(2.0, 0.0, theta_freq=1.5))
    assert not recover(sums, left, right, clean.clone, three, ARRAY).again.any()
    found = recover(sums, left, right, clean.clone, three, ARRAY, "product")
    assert found.again.all()
    assert torch.equal(found.sums, clean)


def test_one_corrupted_tile_makes_a_whole_product_so() -> None:
    left, right = numbers(8, 6), numbers(6, 16)
    clean = product(left, right)
    sums = clean.clone()
    sums[0, 0] += 100
    assert recover(sums, left, right, clean.clone, Duplication(), ARRAY, "product").again.all()


def test_errors_that_cancel_between_tokens_are_seen() -> None:
    left, right = numbers(4, 6), numbers(6, 8)
    clean = product(left, right)
    sums = clean.clone()
    sums[0, 3] += 100
    sums[2, 3] -= 100
    found = recover(sums, left, right, clean.clone, ClassicalABFT(), ARRAY)
    assert found.alarms.tolist() == [True]
    assert torch.equal(found.sums, clean)


def test_zeroing_sets_wrong_sums_to_zero() -> None:
    left, right = numbers(3, 6), numbers(6, 5)
    clean = product(left, right)
    sums = clean.clone()
    sums[1, 2] ^= 1 << 30
    found = recover(sums, left, right, clean.clone, Zeroing(), ARRAY)
    expected = clean.clone()
    expected[1, 2] = 0
    assert torch.equal(found.sums, expected)
    assert not found.again.any()


def test_clean_sums_are_not_computed_again() -> None:
    left, right = numbers(3, 6), numbers(6, 5)
    sums = product(left, right)

    def never() -> torch.Tensor:
        raise AssertionError("nothing is wrong")

    assert recover(sums, left, right, never, ClassicalABFT(), ARRAY).sums is sums


def test_operands_cut_by_depth_add_up_to_the_product() -> None:
    left, right = numbers(2, 5, 19), numbers(19, 7)
    lefts, rights = by_depth(left, right, SystolicArray("weight-stationary", 8, 8))
    assert lefts.shape == (3, 10, 8)
    assert torch.equal(product(lefts, rights).sum(0).view(2, 5, 7), product(left, right).long())
