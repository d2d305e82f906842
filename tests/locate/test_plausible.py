"""Exponents of words, against the numbers that they stand for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.locate.by_text.plausible import exponents, exponents_in_use
from aftershock.numerics import FORMATS, NumberFormat, format_of, generator, words

each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
BIAS = {"float32": 127, "float16": 15, "bfloat16": 127}


def of_powers(powers: list[int], form: NumberFormat) -> torch.Tensor:
    """Words of 1.5 times powers of two."""
    return words(torch.tensor([1.5 * 2.0**power for power in powers], dtype=form.dtype))


@each_format
@given(data=st.data())
def test_a_field_is_the_power_of_two(form: NumberFormat, data: st.DataObject) -> None:
    powers = data.draw(st.lists(st.integers(-13, 14), min_size=1, max_size=8))
    sign = data.draw(st.sampled_from([-1, 1]))
    values = sign * torch.tensor([1.25 * 2.0**power for power in powers], dtype=torch.float64)
    fields = exponents(words(values.to(form.dtype)), form)
    assert fields.dtype == torch.int64
    assert fields.tolist() == [power + BIAS[form.name] for power in powers]


@each_format
def test_fields_of_what_is_no_normal_number(form: NumberFormat) -> None:
    values = torch.tensor([[0.0, -0.0, torch.finfo(form.dtype).smallest_normal / 2], [math.inf, -math.inf, math.nan]])
    highest = 2**form.exponent_bits - 1
    assert exponents(words(values.to(form.dtype)), form).tolist() == [[0] * 3, [highest] * 3]


@each_format
def test_unsigned_words_have_the_same_fields(form: NumberFormat) -> None:
    values = torch.from_numpy(generator(1, 0, "values").standard_normal(50)).to(form.dtype)
    stored = words(values)
    wide = stored.long() & (2**form.bits - 1)
    assert torch.equal(exponents(stored, form), exponents(wide, form))


@each_format
def test_the_top_is_the_highest_power_that_several_words_have(form: NumberFormat) -> None:
    stored = of_powers([-3] * 10 + [-2] * 5 + [0, 0, 4], form)
    assert exponents_in_use(stored, form).top == BIAS[form.name]
    assert exponents_in_use(stored.view(3, 6), form).top == BIAS[form.name]


@each_format
def test_a_share_too_small_does_not_count_as_in_use(form: NumberFormat) -> None:
    many = of_powers([-3], form).repeat(49_990)
    assert exponents_in_use(torch.cat([many, of_powers([2] * 4, form)]), form).top == BIAS[form.name] - 3
    assert exponents_in_use(torch.cat([many, of_powers([2] * 6, form)]), form).top == BIAS[form.name] + 2


@each_format
def test_a_few_words_have_the_top_that_most_have(form: NumberFormat) -> None:
    assert exponents_in_use(of_powers([3], form), form).top == BIAS[form.name] + 3
    # None twice: any of them.
    assert exponents_in_use(of_powers([3, 1], form), form).top in (BIAS[form.name] + 3, BIAS[form.name] + 1)


@each_format
def test_likelihoods_are_shares_and_a_nat_for_each_power_above(form: NumberFormat) -> None:
    powers = [-5] * 60 + [-4] * 30 + [-3] * 9 + [6]
    in_use = exponents_in_use(of_powers(powers, form), form)
    bias = BIAS[form.name]
    fields = torch.tensor([[bias - 5, bias - 4, bias - 3], [bias - 6, bias - 2, bias + 6]])
    expected = np.log([[60.5, 30.5, 9.5], [0.5, 9.5, 9.5]]) - np.log(101) - [[0, 0, 0], [0, 1, 9]]
    found = in_use.log_likelihood(fields)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert math.isclose(float(in_use.log_share.exp().sum()), (100 + 2**form.exponent_bits / 2) / 101, rel_tol=1e-4)


@each_format
def test_a_flipped_top_bit_is_less_likely_than_any_word_in_use(form: NumberFormat) -> None:
    values = torch.from_numpy(generator(1, 0, "values").normal(0, 0.05, 3000)).to(form.dtype)
    stored = words(values)
    in_use = exponents_in_use(stored, format_of(values.dtype))
    fields = exponents(stored, form)
    used = in_use.log_likelihood(fields[fields <= in_use.top])
    flipped = in_use.log_likelihood(fields[fields <= in_use.top] ^ (1 << form.exponent_bits - 1))
    assert flipped.max() < used.min()
