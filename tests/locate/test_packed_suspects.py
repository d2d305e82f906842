"""Bits of packed words that may undo a corruption, against faults in stored words and every bit of every block."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from aftershock.faults import armed, parse_fault
from aftershock.inject import Injection
from aftershock.locate.by_text import PackedWords, PlainWords
from aftershock.locate.by_text.plausible import exponents, exponents_in_use
from aftershock.locate.by_text.suspects import LEAST_GAIN, MARGIN
from aftershock.locate.by_text.words import words_in_use
from aftershock.models import LoadedModel, load
from aftershock.numerics import format_of, generator, words
from tiny_gguf import write_gguf
from tiny_models import save_tiny

Q4_1, LLAMA = "q4_1", "model.layers.0.mlp.down_proj.weight"
CASES = {
    Q4_1: (LLAMA, "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"),
    "q8_0": (LLAMA, "model.layers.1.self_attn.v_proj.weight"),
    "int8": (LLAMA, "model.layers.1.self_attn.v_proj.weight"),
    "int4": (LLAMA,),
    "gpt2 int8": ("transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"),
    "mixtral int8": ("model.layers.1.mlp.experts.down_proj", "model.layers.0.self_attn.o_proj.weight"),
}
EACH = [(case, name) for case, names in CASES.items() for name in names]
each_tensor = pytest.mark.parametrize(("case", "name"), EACH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "AFTERSHOCK_CACHE", str(folder / "cache"))
        write_gguf(folder / "tiny.gguf", "proj|embed|lm_head")
        for family in ("llama", "gpt2", "mixtral"):
            save_tiny(folder / family, family, **({"intermediate_size": 64} if family == "llama" else {}))
        yield folder


def loaded(folder: Path, case: str, dtype: str = "bfloat16") -> LoadedModel:
    if case == Q4_1:
        return load(str(folder / "tiny.gguf"), dtype)
    family, storage = case.split() if " " in case else ("llama", case)
    return load(str(folder / family), dtype, storage=storage)


def packed(model: LoadedModel, name: str) -> PackedWords:
    found = words_in_use(model)[name]
    assert isinstance(found, PackedWords)
    return found


def state(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: words(parameter.detach()).clone() for name, parameter in model.module.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def rows_of(model: LoadedModel, words_of: PackedWords) -> torch.Tensor:
    parameter = model.module.get_parameter(words_of.site.name)
    return parameter.T if words_of.site.dim == 1 else parameter.flatten(0, -2)


@each_tensor
def test_a_flip_changes_what_a_fault_in_the_stored_word_changes(folder: Path, case: str, name: str) -> None:
    model = loaded(folder, case)
    words_of = packed(model, name)
    before, blocks = state(model), words_of.blocks.copy()
    rows, columns = rows_of(model, words_of).shape
    across = columns // words_of.form.elements
    draw = generator(11, 0, f"{case} {name}")
    changed = 0
    for field, kind in words_of.form.fields.items():
        for bit in range(kind.bits):
            row, number = int(draw.integers(rows)), int(draw.integers(across * kind.words))
            with Injection(model, armed(model, [parse_fault(f"stored {name}.{field}[{row},{number}] flip {bit}")])):
                expected = state(model)
            place = row * across + number // kind.words
            flip = place, int(kind.places[number % kind.words][bit])
            words_of.flip(*flip)
            assert same(state(model), expected), (field, row, number, bit)
            assert (words_of.blocks != blocks).sum() == 1
            changed += not same(expected, before)
            words_of.flip(*flip)
            assert same(state(model), before)
            assert np.array_equal(words_of.blocks, blocks)
    assert changed > 4


@each_tensor
def test_a_block_lies_where_its_values_are(folder: Path, case: str, name: str) -> None:
    model = loaded(folder, case, "float32")
    words_of = packed(model, name)
    rows = rows_of(model, words_of)
    values = torch.from_numpy(words_of.form.dequantise(words_of.blocks))
    for place in (0, 1, len(words_of.blocks) // 2, len(words_of.blocks) - 1):
        assert torch.equal(rows[words_of.where(place)], values[place])
        assert words_of.bits(place) == range(8 * words_of.form.size)


def test_all_bits_of_a_block_flipped_twice_restore_it(folder: Path) -> None:
    """Also where a scale was NaN or infinite in between."""
    model = loaded(folder, Q4_1)
    words_of = packed(model, LLAMA)
    before = state(model)
    for bit in words_of.bits(5):
        words_of.flip(5, bit)
    assert not same(state(model), before)
    for bit in words_of.bits(5):
        words_of.flip(5, bit)
    assert same(state(model), before)


def test_the_models_own_blocks_stay_as_they_are(folder: Path) -> None:
    model = loaded(folder, "int8")
    words_of = packed(model, LLAMA)
    assert model.stored is not None
    before = model.stored.tensor(words_of.site).blocks.copy()
    words_of.flip(3, 7)
    assert np.array_equal(model.stored.tensor(words_of.site).blocks, before)


def changes(words_of: PackedWords, place: int, bit: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a block before and after a flip."""
    block = words_of.blocks[place]
    bits = np.unpackbits(block, bitorder="little")
    bits[bit] ^= 1
    both = np.stack([block, np.packbits(bits, bitorder="little")])
    values = torch.from_numpy(np.array(words_of.form.dequantise(both))).to(dtype)
    return values[0], values[1]


def highest(model: LoadedModel, words_of: PackedWords) -> int:
    """The highest exponent field that a value may have: by what is largest in each block."""
    blocks = torch.from_numpy(np.array(words_of.form.dequantise(words_of.blocks))).to(model.dtype)
    largest = torch.stack([block[block.abs().argmax()] for block in blocks])
    return exponents_in_use(words(largest), format_of(model.dtype)).top + MARGIN


def brute_force(model: LoadedModel, words_of: PackedWords, slopes: torch.Tensor) -> dict[tuple[int, int], float]:
    """What the gradient promises for each bit of the blocks that have one; slopes of shape (blocks, elements)."""
    form = format_of(model.dtype)
    most = highest(model, words_of)
    found = {}
    for place in slopes.abs().sum(1).nonzero()[:, 0].tolist():
        for bit in sorted(int(bit) for field in words_of.form.fields.values() for bit in field.places.ravel()):
            before, after = changes(words_of, place, bit, model.dtype)
            if int(exponents(words(after), form).max()) <= most:
                found[place, bit] = float(-(slopes[place].double() * (after.double() - before.double())).sum())
    return {key: gain for key, gain in found.items() if gain >= LEAST_GAIN}


def as_parameter(model: LoadedModel, words_of: PackedWords, slopes: torch.Tensor) -> torch.Tensor:
    rows = slopes.reshape(rows_of(model, words_of).shape)
    shape = model.module.get_parameter(words_of.site.name).shape
    return (rows.T if words_of.site.dim == 1 else rows.reshape(shape)).to(model.dtype)


@pytest.mark.parametrize("size", [0.01, 0.4])
@pytest.mark.parametrize(("case", "name"), EACH)
def test_what_promises_most_is_what_brute_force_finds(folder: Path, case: str, name: str, size: float) -> None:
    model = loaded(folder, case, "float32")
    words_of = packed(model, name)
    slopes = torch.zeros(len(words_of.blocks), words_of.form.elements)
    draw = generator(13, 0, f"{case} {name}")
    places = draw.choice(len(slopes), 6, replace=False)
    slopes[places] = torch.from_numpy(draw.normal(0, size, (6, slopes.shape[1]))).float()
    slopes[places[0], 1:] = 0
    expected = brute_force(model, words_of, slopes)
    found = list(words_of.promising(as_parameter(model, words_of, slopes)))
    assert found
    assert len({(one.place, one.bit) for one in found}) == len(found) == min(64, len(expected))
    for one in found:
        assert one.parameter == name
        assert one.gain == pytest.approx(expected[one.place, one.bit], rel=1e-3, abs=1e-5)
    gains = [one.gain for one in found]
    assert gains == sorted(gains, reverse=True)
    assert gains == pytest.approx(sorted(expected.values(), reverse=True)[: len(found)], rel=1e-3, abs=1e-5)


def test_blocks_that_promise_most_are_looked_at(folder: Path) -> None:
    """One by its scale, with small slopes that agree; one by a quant, with a large slope of one value."""
    model = loaded(folder, Q4_1, "float32")
    words_of = packed(model, LLAMA)
    slopes = torch.from_numpy(generator(1, 0, "slopes").normal(0, 0.002, (len(words_of.blocks), 32))).float()
    values = torch.from_numpy(words_of.form.dequantise(words_of.blocks))
    slopes[40] = values[40].sign() * 0.1
    slopes[:20, 0] = 0.2
    slopes[50] = 0
    slopes[50, 7] = 2.0
    places = {one.place for one in words_of.promising(as_parameter(model, words_of, slopes))}
    assert {40, 50} <= places


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize(("case", "name"), EACH)
def test_gradients_that_are_not_finite_promise_nothing(folder: Path, case: str, name: str, value: float) -> None:
    model = loaded(folder, case)
    words_of = packed(model, name)
    slopes = torch.full((len(words_of.blocks), words_of.form.elements), value)
    assert list(words_of.promising(as_parameter(model, words_of, slopes))) == []


@each_tensor
def test_a_scale_that_is_too_large_is_the_first_suspect(folder: Path, case: str, name: str) -> None:
    model = loaded(folder, case)
    words_of = packed(model, name)
    (scale,) = words_of.form.fields["scale"].places
    healthy = [(one.place, one.bit) for one in words_of.implausible()]
    number = words_of.form.fields["scale"].number
    assert number is not None
    bit = int(scale[number.bits - 2])
    for place in (0, len(words_of.blocks) - 1):
        assert not words_of.stays_plausible(place, bit)
        assert words_of.likelier(place, bit) < 0
        words_of.flip(place, bit)
        first = max(words_of.implausible(), key=lambda one: one.likelier)
        assert (first.parameter, first.place, first.bit) == (name, place, bit)
        assert words_of.likelier(place, bit) == pytest.approx(first.likelier, rel=1e-5)
        assert words_of.stays_plausible(place, bit)
        words_of.flip(place, bit)
    assert [(one.place, one.bit) for one in words_of.implausible()] == healthy


@pytest.mark.parametrize(("case", "name"), [(Q4_1, LLAMA), ("int8", LLAMA)])
def test_a_broken_scale_does_not_widen_what_is_plausible(folder: Path, case: str, name: str) -> None:
    """One block of few: its values are far more than one in 10,000 of the tensor's."""
    broken = packed(loaded(folder, case), name)
    field = broken.form.fields["scale"]
    assert field.number is not None
    bit = int(field.places[0][field.number.bits - 2])
    broken.flip(7, bit)
    assert not broken.stays_plausible(3, bit)
    assert broken.stays_plausible(7, bit)


def test_a_minimum_that_is_too_large_is_the_first_suspect(folder: Path) -> None:
    words_of = packed(loaded(folder, Q4_1), LLAMA)
    (least,) = words_of.form.fields["min"].places
    words_of.flip(9, int(least[14]))
    first = max(words_of.implausible(), key=lambda one: one.likelier)
    assert (first.place, first.bit) == (9, int(least[14]))


@each_tensor
def test_a_flip_stays_plausible_by_all_values_of_the_block(folder: Path, case: str, name: str) -> None:
    model = loaded(folder, case)
    words_of = packed(model, name)
    form = format_of(model.dtype)
    most = highest(model, words_of)
    answers = set()
    for bit in words_of.bits(2):
        _before, after = changes(words_of, 2, bit, model.dtype)
        expected = bool((exponents(words(after), form) <= most).all())
        answers.add(expected)
        assert words_of.stays_plausible(2, bit) == expected
    assert answers == {True, False}
    for bit in words_of.form.fields["quant"].places.ravel()[:40]:
        assert words_of.likelier(2, int(bit)) == 0


def test_what_is_not_packed_has_plain_words(folder: Path) -> None:
    model = loaded(folder, "gpt2 int8")
    assert model.stored is not None
    found = words_in_use(model)
    assert {name for name, one in found.items() if isinstance(one, PackedWords)} == set(model.stored.forms)
    assert {name for name, one in found.items() if isinstance(one, PlainWords)} == (
        {name for name, _ in model.module.named_parameters()} - set(model.stored.forms)
    )
