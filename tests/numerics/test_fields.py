"""Counts of exponent zeros and mantissa ones, against every 16-bit word and against numpy's own reading of fp32."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aftershock.errors import InputError
from aftershock.numerics import field_counts, format_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_word_is_counted_where_it_belongs(dtype: torch.dtype) -> None:
    form = format_of(dtype)
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(256, 256)
    expected = np.zeros((form.exponent_bits + 1, form.mantissa_bits + 1), dtype=np.int64)
    for word in range(2**16):
        text = f"{word:016b}"
        exponent, mantissa = text[1 : 1 + form.exponent_bits], text[1 + form.exponent_bits :]
        expected[exponent.count("0"), mantissa.count("1")] += 1
    np.testing.assert_array_equal(field_counts(values).numpy(), expected)


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
def test_fp32_words_are_counted_as_their_text_reads(values: np.ndarray) -> None:
    expected = np.zeros((9, 24), dtype=np.int64)
    for word in values.view(np.uint32).tolist():
        text = f"{word:032b}"
        expected[text[1:9].count("0"), text[9:].count("1")] += 1
    np.testing.assert_array_equal(field_counts(torch.from_numpy(values)).numpy(), expected)


def test_integers_have_no_such_fields() -> None:
    with pytest.raises(InputError, match="not supported"):
        field_counts(torch.zeros(3, dtype=torch.int32))
