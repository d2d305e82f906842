"""The chance of NaN and infinity under bit errors, against every pattern of flips and against real weights."""

from itertools import product
from math import comb, inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.models import load
from aftershock.numerics import field_counts, format_of, generator, words
from aftershock.stats import nonfinite_chance, parameters_from_nan, published_nan_chance
from demo_model import SPEC, needs_demo_model


@given(st.integers(1, 3), st.integers(1, 3), st.floats(1e-3, 0.9), st.data())
def test_the_formula_is_the_sum_over_every_pattern_of_flips(
    exponent_bits: int, mantissa_bits: int, rate: float, data: st.DataObject
) -> None:
    word = data.draw(st.tuples(*[st.integers(0, 1)] * (exponent_bits + mantissa_bits)))
    nan = infinite = 0.0
    for flips in product((0, 1), repeat=len(word)):
        chance = float(np.prod([rate if flip else 1 - rate for flip in flips]))
        after = [bit ^ flip for bit, flip in zip(word, flips, strict=True)]
        if all(after[:exponent_bits]):
            nan, infinite = (nan + chance, infinite) if any(after[exponent_bits:]) else (nan, infinite + chance)
    counts = np.zeros((exponent_bits + 1, mantissa_bits + 1))
    counts[word[:exponent_bits].count(0), word[exponent_bits:].count(1)] = 5
    found = nonfinite_chance(counts, rate)
    assert found.parameter_nan == pytest.approx(nan)
    assert found.parameter == pytest.approx(nan + infinite)
    assert found.any_nan == pytest.approx(1 - (1 - nan) ** 5)
    assert found.any == pytest.approx(1 - (1 - nan - infinite) ** 5)


def test_the_published_figures_and_formula() -> None:
    assert published_nan_chance(130_000_000, 1e-9) == pytest.approx(0.122, abs=5e-4)
    assert published_nan_chance(130_000_000, 1e-8) == pytest.approx(0.727, abs=5e-4)
    # One zero in every exponent, mantissas of fair coins.
    counts = np.zeros((9, 24))
    counts[1] = [comb(23, ones) for ones in range(24)]
    chance = nonfinite_chance(counts, 1e-3).parameter_nan
    assert 1 - (1 - chance) ** 1000 == pytest.approx(published_nan_chance(1000, 1e-3))


def test_uniform_weights_give_no_nan_at_published_rates() -> None:
    """Values of (0, 1) have two zeros or more in the exponent, so NaN goes with the square of the rate."""
    drawn = torch.from_numpy(generator(3, 0, "uniform").random(200_000, dtype=np.float32))
    counts = field_counts(drawn).numpy()
    assert counts[:2].sum() == 0
    assert nonfinite_chance(counts, 1e-8).parameter_nan == pytest.approx(0.816e-16, rel=0.01)


@needs_demo_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_flipped_bits_of_real_weights_give_that_share(dtype: torch.dtype) -> None:
    model = load(SPEC, "float32", "cpu")
    weight = model.module.get_parameter("model.layers.11.mlp.down_proj.weight").detach().to(dtype).reshape(-1)
    rate, form, random = 0.12, format_of(dtype), generator(5, 0, "flips")
    masks = torch.zeros(weight.shape, dtype=torch.int64)
    for bit in range(form.bits):
        masks |= torch.from_numpy(random.random(len(weight)) < rate).long() << bit
    struck = (words(weight) ^ masks.to(form.word)).view(dtype)
    expected = nonfinite_chance(field_counts(weight).numpy(), rate)
    for found, chance in (
        (int(struck.isnan().sum()), expected.parameter_nan),
        (int((~struck.isfinite()).sum()), expected.parameter),
    ):
        mean = len(weight) * chance
        assert mean > 100
        assert abs(found - mean) < 4.5 * (mean * (1 - chance)) ** 0.5


def test_the_number_of_parameters_comes_back() -> None:
    found = parameters_from_nan(61, 500, published_nan_chance(1, 1e-9))
    assert found.low < 130_000_000 < found.high
    assert found.estimate == pytest.approx(130_000_000, rel=0.01)
    assert published_nan_chance(round(found.estimate), 1e-9) == pytest.approx(61 / 500, rel=1e-6)
    own = parameters_from_nan(61, 500, 1e-6)
    assert published_nan_chance(round(found.low), 1e-9) < 61 / 500 < published_nan_chance(round(found.high), 1e-9)
    assert 1 - (1 - 1e-6) ** own.estimate == pytest.approx(61 / 500)
    none, every = parameters_from_nan(0, 50, 1e-9), parameters_from_nan(50, 50, 1e-9)
    assert (none.estimate, none.low) == (0, 0)
    assert (every.estimate, every.high) == (inf, inf)
    assert none.high < inf
    assert every.low > 0


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda: nonfinite_chance([[1, 2], [3, 4]], 0), "rate is 0"),
        (lambda: nonfinite_chance([[0, 0], [0, 0]], 0.1), "some above 0"),
        (lambda: nonfinite_chance([[1, -1], [0, 0]], 0.1), "0 or more"),
        (lambda: nonfinite_chance([1, 2], 0.1), "counts has shape"),
        (lambda: published_nan_chance(5, 1), "rate is 1"),
        (lambda: parameters_from_nan(3, 2, 1e-9), "3 of 2 copies"),
        (lambda: parameters_from_nan(0, 0, 1e-9), "0 of 0 copies"),
        (lambda: parameters_from_nan(1, 2, 1.0), "chance is 1"),
        (lambda: published_nan_chance(0, 0.1), "0 parameters"),
    ],
)
def test_what_makes_no_sense_is_refused(action, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        action()
