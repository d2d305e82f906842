"""The word that explains a deviation, from made-up outputs."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aftershock.capture import Parameter, Record, Stored
from aftershock.locate.explaining import deviating, explain, same_words
from aftershock.numerics import generator, words

ROWS, COLUMNS, TOKENS = 6, 24, 40


def linear(dtype=torch.float32, bias=True):
    """A record of a linear map with these shapes, and its input, weight and bias."""
    draws = generator(0, 0, "linear map")
    inputs, weight, shift = (
        torch.from_numpy(draws.standard_normal(shape)).to(dtype)
        for shape in ((TOKENS, COLUMNS), (ROWS, COLUMNS), (ROWS,))
    )
    tensors = [Parameter(name="w", shape=(ROWS, COLUMNS), role="weight")]
    if bias:
        tensors.append(Parameter(name="b", shape=(ROWS,), role="bias"))
    kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
    output = Stored(file="a.safetensors", key="out", dtype=kind, shape=(TOKENS, ROWS))
    record = Record(module="map", operation="linear", parameters=tuple(tensors), output=output)
    return record, inputs, weight, shift if bias else torch.zeros_like(shift)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    row=st.integers(0, ROWS - 1),
    column=st.integers(0, COLUMNS - 1),
    bit=st.integers(0, 31),
)
def test_a_word_that_is_named_is_the_changed_one_and_its_tensor_is_always_among_the_names(dtype, row, column, bit):
    record, inputs, weight, bias = linear(dtype)
    clean = torch.nn.functional.linear(inputs, weight, bias)
    changed = weight.clone()
    words(changed)[row, column] ^= torch.tensor(1 << bit % (8 * weight.element_size())).to(words(changed).dtype)
    found = torch.nn.functional.linear(inputs, changed, bias)
    assume(not same_words(clean, found))
    told = explain(record, clean, found, inputs, None)
    assert told.channels == (row,)
    assert "w" in told.tensors
    for word in told.elements:
        assert (word.tensor, word.index) == ("w", (row, column))
        change = float(changed[row, column].double() - weight[row, column].double())
        assert change != change or word.change[0] <= change <= word.change[1]


@pytest.mark.parametrize("amount", [0.5, 1e30, float("inf"), float("-inf")])
def test_a_bias_is_told_from_a_weight(amount):
    record, inputs, weight, bias = linear()
    clean = torch.nn.functional.linear(inputs, weight, bias)
    shifted = bias.clone()
    shifted[2] += amount
    told = explain(record, clean, torch.nn.functional.linear(inputs, weight, shifted), inputs, None)
    assert told.tensors == ("b",)
    assert [word.index for word in told.elements] == [(2,)]


def test_with_too_few_tokens_nothing_is_named():
    record, inputs, weight, bias = linear()
    changed = weight.clone()
    changed[1, 7] += 1
    clean, found = (torch.nn.functional.linear(inputs, values, bias)[:1] for values in (weight, changed))
    told = explain(record, clean, found, inputs[:1], None)
    assert told.tensors == ("w", "b")
    assert told.elements == ()


def test_a_column_that_is_a_multiple_of_another_is_not_told_from_it():
    record, inputs, weight, bias = linear()
    inputs[:, 3] = -2 * inputs[:, 8]
    changed = weight.clone()
    changed[1, 8] += 1
    clean, found = (torch.nn.functional.linear(inputs, values, bias) for values in (weight, changed))
    told = explain(record, clean, found, inputs, None)
    assert (told.tensors, told.channels, told.elements) == (("w",), (1,), ())


def test_words_deviate_where_values_do_not():
    clean, found = torch.tensor([[0.0, 1.0, float("nan")]]), torch.tensor([[-0.0, 1.0, float("nan")]])
    assert deviating(clean, found, None).tolist() == [[True, False, False]]
    assert deviating(clean, found, 0.0).tolist() == [[False, False, False]]


@settings(deadline=None)
@given(width=st.integers(1, 9), skipped=st.integers(0, 3), place=st.integers(0, 1000))
def test_words_are_compared_in_any_layout(width, skipped, place):
    whole = torch.arange(5 * 12, dtype=torch.bfloat16).view(5, 12)
    first = whole[:, skipped : skipped + width]
    second = first.clone()
    assert same_words(first, second)
    words(second).view(-1)[place % second.numel()] ^= 1
    assert not same_words(first, second)
