"""Bits of plain numbers that may undo a corruption, against every bit of every word."""

import math
from dataclasses import replace

import pytest
import torch

from aftershock.locate.by_text import PlainWords, layer_of
from aftershock.locate.by_text.plausible import exponents, exponents_in_use
from aftershock.locate.by_text.suspects import LEAST_GAIN, MARGIN, Suspect
from aftershock.locate.by_text.text_loss import LAST
from aftershock.locate.by_text.words import words_in_use
from aftershock.models import LoadedModel
from aftershock.numerics import FORMATS, NumberFormat, generator, words
from tiny_models import FAMILIES, tiny_loaded

NAME = "model.layers.1.mlp.up_proj.weight"
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


def plain(model: LoadedModel, name: str = NAME) -> PlainWords:
    return PlainWords(model, next(site for site in model.components.parameters if site.name == name))


def random_model(form: NumberFormat, seed: int = 0) -> LoadedModel:
    """A tiny model with one matrix whose weights are as small as a large model's."""
    model = tiny_loaded("llama", form.dtype)
    weight = model.module.get_parameter(NAME)
    weight.copy_(torch.from_numpy(generator(seed, 0, "weights").normal(0, 0.03, tuple(weight.shape))))
    return model


def gradient(form: NumberFormat, shape: torch.Size, size: float = 0.05) -> torch.Tensor:
    return torch.from_numpy(generator(7, 0, "gradient").normal(0, size, tuple(shape))).to(form.dtype)


def struck(stored: int, bit: int, form: NumberFormat) -> torch.Tensor:
    """The number that a word stands for with one bit flipped, shape ()."""
    unsigned = (stored & (2**form.bits - 1)) ^ (1 << bit)
    signed = unsigned - 2**form.bits if unsigned >> (form.bits - 1) else unsigned
    return torch.tensor([signed], dtype=form.word).view(form.dtype)[0]


@each_format
def test_a_flip_is_one_bit_of_the_parameter_and_twice_is_none(form: NumberFormat) -> None:
    model = random_model(form)
    words_of = plain(model)
    weight = model.module.get_parameter(NAME)
    before = words(weight).clone().view(-1)
    for place in (0, 17, weight.numel() - 1):
        for bit in words_of.bits(place):
            words_of.flip(place, bit)
            after = words(weight).view(-1)
            changed = (after != before).nonzero()[:, 0]
            assert changed.tolist() == [place]
            assert torch.equal(words(weight.view(-1)[place]), words(struck(int(before[place]), bit, form)))
            words_of.flip(place, bit)
            assert torch.equal(words(weight).view(-1), before)
    assert words_of.bits(0) == range(form.bits)


@each_format
@pytest.mark.parametrize("seed", range(4))
def test_an_implausible_exponent_is_the_first_suspect(form: NumberFormat, seed: int) -> None:
    model = random_model(form, seed)
    words_of = plain(model)
    top = exponents_in_use(words_of.stored, form).top
    healthy = [(one.place, one.bit) for one in words_of.implausible()]
    draw = generator(seed, 1, "place")
    for bit in form.bits_of("exponent"):
        place = int(draw.integers(len(words_of.stored)))
        field = int(exponents(words_of.stored[place], form))
        flipped = field ^ 1 << bit - form.mantissa_bits
        if field > top or flipped <= top + 8:
            continue
        words_of.flip(place, bit)
        found = list(words_of.implausible())
        assert (found[0].parameter, found[0].place, found[0].bit) == (NAME, place, bit)
        assert found[0].gain == 0
        assert found[0].likelier == pytest.approx(plain(model).likelier(place, bit), rel=1e-5)
        assert found[0].likelier > 0
        words_of.flip(place, bit)
    bit = form.bits - 2
    words_of.flip(5, bit)
    assert next(words_of.implausible()).place == 5
    words_of.flip(5, bit)
    assert [(one.place, one.bit) for one in words_of.implausible()] == healthy


def test_of_the_bits_that_bring_a_word_back_the_likeliest_is_first() -> None:
    form = FORMATS[2]
    words_of = plain(random_model(form))
    words_of.values.fill_(2.0**-4)
    words_of.values[:100] = 0.5
    words_of.flip(700, form.mantissa_bits + 2)
    assert float(words_of.values[700]) == 1
    found = list(words_of.implausible())
    assert len(found) > 1
    assert (found[0].place, found[0].bit) == (700, form.mantissa_bits + 2)


@each_format
@pytest.mark.parametrize("value", [1.0, 1.3, -1.3])
def test_a_flip_to_infinity_or_nan_is_the_first_suspect(form: NumberFormat, value: float) -> None:
    words_of = plain(tiny_loaded("llama", form.dtype), "model.norm.weight")
    words_of.values[21] = value
    words_of.flip(21, form.bits - 2)
    assert not words_of.values[21].isfinite()
    found = next(words_of.implausible())
    assert (found.place, found.bit) == (21, form.bits - 2)


@each_format
def test_words_of_the_usual_sizes_are_no_suspects(form: NumberFormat) -> None:
    model = random_model(form)
    weight = model.module.get_parameter(NAME)
    weight.copy_((weight.sign() + 0.5) * 0.02)
    words_of = plain(model)
    assert list(words_of.implausible()) == []
    # Nor are words that are too small: they do no harm.
    words_of.values[3] = 0
    assert list(words_of.implausible()) == []


def test_suspects_of_many_implausible_words_are_those_of_the_largest() -> None:
    form = FORMATS[2]
    words_of = plain(random_model(form))
    values = [2.0**power for power in (30, 70, 50, 90, 60, 80)]
    words_of.values[:6] = torch.tensor(values).to(form.dtype)
    assert {one.place for one in words_of.implausible()} == {1, 3, 4, 5}


def brute_force(words_of: PlainWords, slopes: torch.Tensor, form: NumberFormat) -> dict[tuple[int, int], float]:
    """What the gradient promises for each bit of each word."""
    most = exponents_in_use(words_of.stored, form).top + MARGIN
    found = {}
    for place, (stored, slope) in enumerate(zip(words_of.stored.tolist(), slopes.flatten().tolist(), strict=True)):
        for bit in range(form.bits):
            flipped = struck(stored, bit, form)
            if int(exponents(words(flipped), form)) <= most:
                found[place, bit] = -slope * float(flipped.double() - words_of.values[place].double())
    return {key: gain for key, gain in found.items() if gain >= LEAST_GAIN}


@each_format
@pytest.mark.parametrize("size", [0.02, 0.3])
def test_what_promises_most_is_what_brute_force_finds(form: NumberFormat, size: float) -> None:
    model = tiny_loaded("llama", form.dtype)
    name = "model.layers.0.self_attn.k_proj.weight"
    words_of = plain(model, name)
    words_of.values.copy_(torch.from_numpy(generator(2, 0, "values").normal(0, 0.05, len(words_of.values))))
    slopes = gradient(form, model.module.get_parameter(name).shape, size)
    slopes[2:5] = 0
    expected = brute_force(words_of, slopes, form)
    found = list(words_of.promising(slopes))
    assert found
    assert len({(one.place, one.bit) for one in found}) == len(found) == min(64, len(expected))
    for one in found:
        assert one.parameter == name
        assert one.likelier == 0
        assert one.gain == pytest.approx(expected[one.place, one.bit], rel=1e-5)
    gains = [one.gain for one in found]
    assert gains == sorted(gains, reverse=True)
    assert gains == pytest.approx(sorted(expected.values(), reverse=True)[: len(found)], rel=1e-5)


def test_one_word_with_a_gradient_gives_all_its_helpful_bits() -> None:
    form = FORMATS[0]
    words_of = plain(random_model(form))
    slopes = torch.zeros(len(words_of.stored))
    slopes[100] = 3.0
    found = list(words_of.promising(slopes))
    assert {one.place for one in found} == {100}
    assert {(one.place, one.bit) for one in found} == brute_force(words_of, slopes, form).keys()


def test_words_up_to_the_largest_number_of_a_format_are_looked_at() -> None:
    """Where the margin reaches beyond the highest exponent, its numbers go up to twice its power of two."""
    form = FORMATS[1]
    model = tiny_loaded("llama", form.dtype)
    words_of = plain(model)
    words_of.values.fill_(-32_000.0)
    words_of.values[9] = 60_000.0 - 32.0
    slopes = torch.zeros(len(words_of.stored))
    slopes[9] = 1.8e-8
    expected = brute_force(words_of, slopes, form)
    assert (9, 15) in expected
    assert {(one.place, one.bit) for one in words_of.promising(slopes)} == expected.keys()


@each_format
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_promise_nothing(form: NumberFormat, value: float) -> None:
    model = random_model(form)
    words_of = plain(model)
    slopes = torch.full(model.module.get_parameter(NAME).shape, value, dtype=form.dtype)
    assert list(words_of.promising(slopes)) == []
    slopes.fill_(0)
    assert list(words_of.promising(slopes)) == []
    slopes.view(-1)[7], slopes.view(-1)[8] = value, 1.0
    assert {one.place for one in words_of.promising(slopes)} == {8}


def test_a_word_that_is_not_finite_promises_nothing() -> None:
    form = FORMATS[2]
    model = random_model(form)
    words_of = plain(model)
    words_of.values[4], words_of.values[5] = math.nan, math.inf
    slopes = gradient(form, model.module.get_parameter(NAME).shape, 1.0)
    found = list(words_of.promising(slopes))
    assert len(found) == 64
    assert not {4, 5} & {one.place for one in found}
    assert all(math.isfinite(one.gain) for one in found)


@each_format
def test_how_plausible_a_word_gets(form: NumberFormat) -> None:
    model = random_model(form)
    words_of = plain(model)
    in_use = exponents_in_use(words_of.stored, form)
    for place in (3, 4):
        for bit in range(form.bits):
            before = exponents(words_of.stored[place], form)
            after = exponents(words(struck(int(words_of.stored[place]), bit, form)), form)
            assert words_of.stays_plausible(place, bit) == (int(after) <= in_use.top + 2)
            expected = float(in_use.log_likelihood(after) - in_use.log_likelihood(before))
            assert words_of.likelier(place, bit) == pytest.approx(expected, abs=1e-6)
            if form.bit_class(bit) != "exponent":
                assert words_of.likelier(place, bit) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_its_words_once(family: str) -> None:
    model = tiny_loaded(family)
    found = words_in_use(model)
    assert found.keys() == {name for name, _ in model.module.named_parameters()}
    for name, words_of in found.items():
        assert isinstance(words_of, PlainWords)
        assert words_of.values.data_ptr() == model.module.get_parameter(name).data_ptr()
        assert words_of.site.name == name


def test_layers_of_parameters() -> None:
    tied, untied = tiny_loaded("llama"), tiny_loaded("gpt_neox")
    sites = {site.name: site for model in (tied, untied) for site in model.components.parameters}
    assert layer_of(sites["model.embed_tokens.weight"]) is None
    assert layer_of(sites["gpt_neox.embed_in.weight"]) is None
    assert layer_of(sites["model.norm.weight"]) == LAST
    assert layer_of(sites["lm_head.weight"]) == LAST
    assert layer_of(sites["model.layers.1.input_layernorm.weight"]) == 1
    assert layer_of(sites["model.layers.0.self_attn.q_proj.weight"]) == 0
    assert layer_of(replace(sites["model.norm.weight"], component="position")) is None


def test_a_suspect_is_a_value() -> None:
    assert Suspect("a", 1, 2, 0.0, 0.0) == Suspect("a", 1, 2, 0.0, 0.0)
