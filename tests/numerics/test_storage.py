"""Packed formats: every bit table against the dequantisation it describes, by brute force."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.numerics import GGUF_FORMATS, STORAGE, generator, storage_format
from aftershock.numerics.storage import BlockFormat

COLUMNS = 256
NAMES = (*STORAGE, "q4_k", "q5_k", "q6_k")


def blocks_of(name: str, count: int = 2) -> tuple[BlockFormat, np.ndarray]:
    """A format for rows of 256 values, and blocks of random values; of random bytes where nothing here quantises."""
    form = storage_format(name, COLUMNS)
    random = generator(6, 0, name)
    if name in STORAGE:
        return form, form.quantise(random.standard_normal((count, form.elements)).astype(np.float32))
    blocks = random.integers(0, 256, (count, form.size), dtype=np.uint8)
    for field in form.fields.values():
        if field.number is not None:
            # Scales and minima of usual sizes.
            first = int(field.places[0, 0]) // 8
            blocks[:, first : first + 2] = random.uniform(0.01, 0.1, (count, 1)).astype(np.float16).view(np.uint8)
    return form, blocks


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_a_block_belongs_to_one_word(name: str) -> None:
    form = storage_format(name, COLUMNS)
    places = np.concatenate([field.places.ravel() for field in form.fields.values()])
    assert len(set(places.tolist())) == len(places)
    # The upper half of int4's last byte is padding.
    padding = {8 * form.size - bit for bit in (1, 2, 3, 4)} if name == "int4" else set()
    assert set(places.tolist()) == set(range(8 * form.size)) - padding


@pytest.mark.parametrize("name", NAMES)
def test_words_are_the_quants_that_the_values_come_from(name: str) -> None:
    """Values worked out here from the words that the table finds, against the library's."""
    form, blocks = blocks_of(name)
    for block in blocks:

        def words(field: str, block: np.ndarray = block) -> np.ndarray:
            return np.array([form.word(block, field, number) for number in range(form.fields[field].words)])

        def number(field: str) -> float:
            kind = {16: np.uint16, 32: np.uint32}[form.fields[field].bits]
            return float(words(field).astype(kind).view({16: np.float16, 32: np.float32}[form.fields[field].bits])[0])

        quants = words("quant").astype(np.float64)
        match name:
            case "q4_0":
                expected = (quants - 8) * number("scale")
            case "q5_0":
                expected = (quants - 16) * number("scale")
            case "q4_1" | "q5_1":
                expected = quants * number("scale") + number("min")
            case "q8_0" | "int8":
                expected = np.where(quants > 127, quants - 256, quants) * number("scale")
            case "int4":
                expected = (quants - float(words("zero")[0])) * number("scale")
            case "fp8_e4m3" | "fp8_e5m2":
                assert form.fields["quant"].number is not None
                raw = torch.tensor(words("quant"), dtype=torch.uint8).view(form.fields["quant"].number.dtype)
                expected = raw.double().numpy() * number("scale")
            case "q4_k" | "q5_k":
                scales, minima = words("block_scale").repeat(32), words("block_min").repeat(32)
                expected = quants * scales * number("scale") - minima * number("min")
            case _:
                signed = words("block_scale").astype(np.uint8).view(np.int8).repeat(16)
                expected = (quants - 32) * signed * number("scale")
        np.testing.assert_allclose(form.dequantise(block[None])[0], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_flip_changes_the_byte_that_the_table_names_and_no_other_word(name: str) -> None:
    form, (block, *_) = blocks_of(name)
    clean = form.dequantise(block[None])[0]
    for field, table in form.fields.items():
        for number in range(table.words):
            for bit in range(table.bits):
                old = form.word(block, field, number)
                struck = form.with_word(block, field, number, old ^ (1 << bit))
                assert form.word(struck, field, number) == old ^ (1 << bit)
                by_hand = block.copy()
                place = int(table.places[number, bit])
                by_hand[place // 8] ^= 1 << place % 8
                assert np.array_equal(struck, by_hand)
                changed = np.flatnonzero(form.dequantise(struck[None])[0] != clean)
                if field == "quant":
                    assert changed.tolist() == [number]
                elif field in ("block_scale", "block_min"):
                    own = form.elements // table.words
                    assert set(changed.tolist()) <= set(range(number * own, (number + 1) * own))


@pytest.mark.parametrize("name", STORAGE)
@settings(max_examples=30)
@given(st.floats(0.01, 1e3), st.integers(0, 2**31))
def test_rounding_to_a_format_and_back_is_near(name: str, size: float, seed: int) -> None:
    form = storage_format(name, COLUMNS)
    values = (size * generator(seed, 0, "values").standard_normal((3, form.elements))).astype(np.float32)
    found = form.dequantise(form.quantise(values))
    steps = {"int8": 127, "q8_0": 127, "q5_0": 15, "q5_1": 15, "fp8_e4m3": 14}.get(name, 7)
    assert np.abs(found - values).max() <= np.abs(values).max() / steps
    assert found.dtype == np.float32
    # What is rounded already stays as it is, but where the scale itself is rounded.
    if name in ("int8", "fp8_e4m3", "fp8_e5m2"):
        np.testing.assert_allclose(form.dequantise(form.quantise(found)), found, rtol=1e-6)


@pytest.mark.parametrize("name", STORAGE)
def test_rows_of_zeros_stay_zero(name: str) -> None:
    form = storage_format(name, COLUMNS)
    zeros = np.zeros((1, form.elements), dtype=np.float32)
    assert np.array_equal(form.dequantise(form.quantise(zeros)), zeros)


def test_groups_of_int4_divide_the_row() -> None:
    assert [storage_format("int4", columns).elements for columns in (576, 1536, 48, 40, 4096)] == [64, 128, 16, 40, 128]


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(InputError, match="storage 'int3' is not known: choose from fp8_e4m3"):
        storage_format("int3", 64)
    with pytest.raises(InputError, match="rows of 48 values don't fill q4_0 blocks of 32"):
        storage_format("q4_0", 48)


def test_the_library_has_the_blocks_that_the_tables_describe() -> None:
    for name in GGUF_FORMATS:
        form = storage_format(name, COLUMNS)
        assert (form.elements, form.size) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
