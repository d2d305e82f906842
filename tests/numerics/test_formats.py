"""Number formats against brute force: every word of the 16-bit formats, every bit of every format."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.numerics import BIT_CLASSES, FORMATS, NumberFormat, format_of, words

by_name = pytest.mark.parametrize("number_format", FORMATS, ids=lambda one: one.name)
UNSIGNED = {16: np.uint16, 32: np.uint32}


def decode(number_format: NumberFormat, unsigned: np.ndarray) -> np.ndarray:
    """IEEE 754 value of words by arithmetic on the three fields, float64 (exact for these formats)."""
    field = {
        name: sum(
            ((unsigned.astype(np.int64) >> bit) & 1) << place for place, bit in enumerate(number_format.bits_of(name))
        )
        for name in BIT_CLASSES
    }
    bias = 2 ** (number_format.exponent_bits - 1) - 1
    fraction = field["mantissa"] / 2**number_format.mantissa_bits
    normal = (1 + fraction) * 2.0 ** (field["exponent"] - bias)
    subnormal = fraction * 2.0 ** (1 - bias)
    special = np.where(field["mantissa"] == 0, np.inf, np.nan)
    top = 2**number_format.exponent_bits - 1
    magnitude = np.select([field["exponent"] == 0, field["exponent"] == top], [subnormal, special], normal)
    return np.where(field["sign"] == 1, -magnitude, magnitude)


def sample_words(number_format: NumberFormat) -> np.ndarray:
    """All words of a 16-bit format; for float32 those of bfloat16 extended by ones, which meet every exponent."""
    every = np.arange(2**16, dtype=np.uint32)
    return (every << 16 | every) if number_format.bits == 32 else every.astype(np.uint16)


@by_name
def test_fields_decode_to_the_values_torch_sees(number_format: NumberFormat):
    unsigned = sample_words(number_format)
    values = torch.from_numpy(unsigned.view(f"int{number_format.bits}")).view(number_format.dtype)
    np.testing.assert_array_equal(values.double().numpy(), decode(number_format, unsigned))


def test_float16_agrees_with_numpy():
    unsigned = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(unsigned.view(np.float16).astype(np.float64), decode(format_of("fp16"), unsigned))


def test_bfloat16_is_the_upper_half_of_float32():
    unsigned = np.arange(2**16, dtype=np.uint32)
    with np.errstate(invalid="ignore"):  # signalling NaN
        upper = (unsigned << 16).view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(upper, decode(format_of("bf16"), unsigned))


@by_name
def test_bit_classes_partition_the_word(number_format: NumberFormat):
    listed = [bit for bit_class in ("mantissa", "exponent", "sign") for bit in number_format.bits_of(bit_class)]
    assert listed == list(range(number_format.bits))
    assert all(bit in number_format.bits_of(number_format.bit_class(bit)) for bit in listed)
    assert number_format.bits == 8 * number_format.dtype.itemsize == 8 * number_format.word.itemsize


@by_name
def test_bits_outside_the_word_are_refused(number_format: NumberFormat):
    for bit in (-1, number_format.bits, 64):
        with pytest.raises(InputError, match=f"bit {bit} is outside {number_format.name}"):
            number_format.bit_class(bit)


@pytest.mark.parametrize(("bit", "value"), [(15, -1.0), (14, math.inf), (10, 0.5), (9, 1.5), (0, 1 + 2**-10)])
def test_named_bits_of_float16_one(bit: int, value: float):
    tensor = torch.ones(1, dtype=torch.float16)
    mask = 1 << bit
    words(tensor).bitwise_xor_(mask - 2**16 if bit == 15 else mask)
    assert tensor.item() == value


@by_name
def test_words_share_memory_and_keep_the_shape(number_format: NumberFormat):
    tensor = torch.zeros(3, 4, dtype=number_format.dtype)
    view = words(tensor)
    assert view.shape == tensor.shape
    assert view.dtype == number_format.word
    assert view.data_ptr() == tensor.data_ptr()
    view[1, 2] = 1
    assert (tensor != 0).nonzero().tolist() == [[1, 2]]


@by_name
def test_words_of_a_slice_reach_the_whole(number_format: NumberFormat):
    tensor = torch.zeros(4, 6, dtype=number_format.dtype)
    words(tensor[:, 2:4].T)[1, 3] = 1
    assert (tensor != 0).nonzero().tolist() == [[3, 3]]


@by_name
@given(payload=st.integers(1, 2**7 - 1), sign=st.booleans())
def test_nan_payloads_survive_and_equal_themselves(number_format: NumberFormat, payload: int, sign: bool):
    unsigned_type = UNSIGNED[number_format.bits]
    exponent = sum(1 << bit for bit in number_format.bits_of("exponent"))
    word = np.array([(sign << number_format.bits - 1) | exponent | payload], dtype=unsigned_type)
    tensor = torch.empty(1, dtype=number_format.dtype)
    words(tensor).copy_(torch.from_numpy(word.view(f"int{number_format.bits}")))
    assert tensor.isnan().all()
    assert words(tensor).numpy().view(unsigned_type)[0] == word[0]
    assert torch.equal(words(tensor), words(tensor.clone()))


def test_words_tell_signed_zeros_apart():
    zeros = torch.tensor([0.0, -0.0])
    assert zeros[0] == zeros[1]
    assert words(zeros)[0] != words(zeros)[1]


def test_words_work_under_inference_mode():
    with torch.inference_mode():
        tensor = torch.ones(2)
        words(tensor)[0] ^= 1 << 22
        assert tensor.tolist() == [1.5, 1.0]


@pytest.mark.parametrize("name", ["float32", "fp32", "torch.float32"])
def test_names_of_a_format(name: str):
    assert format_of(name) is format_of(torch.float32)


def test_unsupported_dtypes_are_named():
    with pytest.raises(InputError, match="int64"):
        format_of(torch.int64)


def test_float64_has_words_and_no_format():
    values = torch.tensor([0.0, -0.0, torch.nan], dtype=torch.float64)
    assert torch.equal(words(values), words(values.clone()))
    assert words(values)[0] != words(values)[1]
    with pytest.raises(InputError):
        format_of(torch.float64)
