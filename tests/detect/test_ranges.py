"""Bounds of values: seen, stretched, joined, kept to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.detect import Bounds, bounds_by_channel, bounds_of, clamped, not_finite, outside
from aftershock.numerics import words

VALUES = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -8.0]])
floats = st.floats(-100, 100, width=32)


def test_bounds_are_the_least_and_the_largest():
    bounds = bounds_of(VALUES)
    assert (float(bounds.lowest), float(bounds.highest)) == (-8, 4)
    by_channel = bounds_by_channel(VALUES)
    assert (by_channel.lowest.tolist(), by_channel.highest.tolist()) == ([0.5, -2, -8], [1, 4, 3])


def test_values_that_are_not_finite_set_no_bounds():
    values = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 2.0])
    bounds = bounds_of(values)
    assert (float(bounds.lowest), float(bounds.highest)) == (1, 2)
    assert outside(values, bounds).tolist() == [False, True, True, True, False]
    nothing = bounds_of(values[1:4])
    assert outside(torch.zeros(2), nothing).all()


def test_bounds_below_zero_stay_there_beside_values_that_are_not_finite():
    values = torch.tensor([[-5.0, torch.nan], [-2.0, -3.0], [torch.nan, torch.inf]])
    bounds = bounds_of(values)
    assert (float(bounds.lowest), float(bounds.highest)) == (-5, -2)
    by_channel = bounds_by_channel(values)
    assert (by_channel.lowest.tolist(), by_channel.highest.tolist()) == ([-5, -3], [-2, -3])


@given(floats, floats, st.floats(1, 10))
def test_stretched_bounds_hold_what_they_held(one, other, factor):
    bounds = bounds_of(torch.tensor([one, other]))
    wider = bounds.stretched(factor)
    assert wider.lowest <= bounds.lowest
    assert wider.highest >= bounds.highest


def test_two_stretches_as_ft2_does():
    wider = bounds_of(VALUES).stretched(2.0)
    assert (float(wider.lowest), float(wider.highest)) == (-16, 8)
    above = Bounds(torch.tensor(2.0), torch.tensor(6.0)).stretched(2.0)
    assert (float(above.lowest), float(above.highest)) == (1, 12)


def test_joined_bounds_hold_both():
    joined = bounds_of(torch.tensor([1.0, 3.0])).joined(bounds_of(torch.tensor([-1.0, 2.0])))
    assert (float(joined.lowest), float(joined.highest)) == (-1, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(st.lists(floats, min_size=1, max_size=20))
def test_values_within_their_own_bounds_stay_to_the_bit(dtype, drawn):
    values = torch.tensor(drawn).to(dtype) / 3
    bounds = bounds_of(values)
    assert not outside(values, bounds).any()
    assert torch.equal(words(clamped(values, bounds)), words(values))


def test_clamped_values_lie_within_and_nan_is_zero():
    bounds = Bounds(torch.tensor(-1.0), torch.tensor(2.0))
    values = torch.tensor([-5.0, torch.nan, torch.inf, 1.5, -torch.inf], dtype=torch.bfloat16)
    found = clamped(values, bounds)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [-1, 0, 2, 1.5, -1]
    assert clamped(values, Bounds(torch.tensor(1.0), torch.tensor(2.0)))[1] == 1


def test_rows_with_a_value_that_is_not_finite():
    values = VALUES.clone()
    values[1, 2] = torch.nan
    assert not_finite(values).tolist() == [False, True]
