"""Planted errors are found where they are, and undone to the bit."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from operands import DTYPES, normal

from aftershock.detect import (
    ChangedColumn,
    RowCheck,
    changed_column,
    check_rows,
    column_word_sums,
    linear_checksum,
    placed_checksum,
    put_back,
    rounding_of,
    weighted_deviations,
    wrong_columns,
    wrong_weight,
)
from aftershock.detect.multipliers import multipliers
from aftershock.numerics import format_of, generator, words

linear = torch.nn.functional.linear
OUTPUTS, INPUTS, TOKENS = 48, 64, 6


def layer(dtype, seed=0):
    random = generator(seed, 0, "a layer")
    return normal(random, TOKENS, INPUTS).to(dtype), (normal(random, OUTPUTS, INPUTS) * 0.1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(st.integers(0, TOKENS - 1), st.integers(0, OUTPUTS - 1))
def test_two_checksums_tell_the_column_of_a_wrong_output(dtype, row, column):
    inputs, weight = layer(dtype)
    checksum, outputs = linear_checksum(weight), linear(inputs, weight)
    placed = placed_checksum(checksum, weight)
    outputs[row, column] += 2000
    check = check_rows(inputs, outputs, checksum, rounding_of(dtype, "cpu"))
    found = wrong_columns(check, weighted_deviations(inputs, outputs, placed), OUTPUTS)
    assert abs(int(found.column[row]) - column) <= float(found.within[row])
    if dtype == torch.float32:
        assert float(found.within[row]) < 0.5
        assert int(found.column[row]) == column


@given(st.integers(0, TOKENS - 1), st.integers(0, OUTPUTS - 1), st.floats(1, 1e4))
def test_the_column_is_within_what_is_said(row, column, size):
    inputs, weight = layer(torch.bfloat16)
    checksum, outputs = linear_checksum(weight), linear(inputs, weight)
    placed = placed_checksum(checksum, weight)
    outputs[row, column] += size
    check = check_rows(inputs, outputs, checksum, rounding_of(torch.bfloat16, "cpu"))
    found = wrong_columns(check, weighted_deviations(inputs, outputs, placed), OUTPUTS)
    assume(bool(check.wrong[row]))
    assert abs(int(found.column[row]) - column) <= float(found.within[row]) + 1


def test_a_wrong_output_beside_a_bias_is_found():
    inputs, weight = layer(torch.float32)
    bias = torch.arange(OUTPUTS).float() * 10
    checksum, outputs = linear_checksum(weight, bias), linear(inputs, weight, bias)
    placed = placed_checksum(checksum, weight, bias)
    outputs[2, 31] += 2000
    check = check_rows(inputs, outputs, checksum, rounding_of(torch.float32, "cpu"))
    found = wrong_columns(check, weighted_deviations(inputs, outputs, placed), OUTPUTS)
    assert int(found.column[2]) == 31


def test_the_second_checksum_is_of_stored_words_by_place():
    weight = torch.tensor([[1.0, -2.0], [0.5, 4.0], [8.0, 0.25]], dtype=torch.float16)
    bias = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float16)
    placed = placed_checksum(linear_checksum(weight, bias), weight, bias)
    assert placed.sums.tolist() == [26.0, 6.75]
    assert float(placed.bias_sum) == 17.0
    assert placed.places.tolist() == [1, 2, 3]


def test_a_wrong_output_is_found_among_outputs_that_are_added_up_with_signs():
    inputs, weight = layer(torch.float32)
    alike = weight[:1] + weight * 1e-3
    checksum, outputs = linear_checksum(alike), linear(inputs, alike)
    assert checksum.signs is not None
    column = int((checksum.signs == -1).nonzero()[-1])
    outputs[2, column] += 2000
    check = check_rows(inputs, outputs, checksum, rounding_of(torch.float32, "cpu"))
    found = wrong_columns(check, weighted_deviations(inputs, outputs, placed_checksum(checksum, alike)), OUTPUTS)
    assert int(found.column[2]) == column


@pytest.mark.parametrize("column", [0, 300, 999])
def test_rounding_far_from_the_error_moves_its_column_no_further_than_is_said(column):
    outputs, threshold, error = 1000, 1.0, 10.0
    # All that rounding may do, in the first output or the last.
    for place in (1, outputs):
        check = RowCheck(torch.tensor([error + threshold]), torch.tensor([threshold]), torch.tensor([False]))
        found = wrong_columns(check, torch.tensor([(column + 1) * error + place * threshold]), outputs)
        assert abs(int(found.column[0]) - column) <= float(found.within[0]) + 0.5


def damaged(dtype, row, column, bit, seed):
    """Inputs, the weight as it was, its checksums and sums of words, and the weight with a bit flipped."""
    inputs, weight = layer(dtype, seed)
    clean, checksum, sums = weight.clone(), linear_checksum(weight), column_word_sums(weight)
    placed = placed_checksum(checksum, weight)
    words(weight)[row, column] ^= -(1 << bit) if bit == format_of(dtype).bits - 1 else 1 << bit
    return inputs, clean, checksum, placed, sums, weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(st.integers(0, OUTPUTS - 1), st.integers(0, INPUTS - 1), st.integers(0, 99), st.data())
def test_a_flipped_weight_is_found_by_a_few_tokens_and_repaired_to_the_bit(dtype, row, column, seed, data):
    bits = format_of(dtype).bits
    bit = data.draw(st.integers(0, bits - 1))
    inputs, clean, checksum, placed, sums, weight = damaged(dtype, row, column, bit, seed)
    outputs = linear(inputs, weight)
    check = check_rows(inputs, outputs, checksum, rounding_of(dtype, "cpu"))
    assume(bool(check.wrong.any()) and bool(check.deviation.isfinite().all()))
    found = wrong_weight(
        inputs, check, weighted_deviations(inputs, outputs, placed), OUTPUTS, rounding_of(inputs.dtype, "cpu")
    )
    assert found is not None
    assert column in found.columns
    if len(found.columns) == 1:
        assert found.column == column
        assert abs(found.row - row) <= found.within + 0.5
        change = float(weight[row, column].double() - clean[row, column].double())
        assert found.size == pytest.approx(change, rel=0.5)
    changes = [one for at in found.columns if (one := changed_column(weight, at, sums)) is not None]
    assert changes == [ChangedColumn(column, row, int(words(clean)[row, column]))]
    assert put_back(weight, changes[0])
    assert torch.equal(words(weight), words(clean))


def test_a_large_change_is_told_by_deviations_alone():
    inputs, weight = layer(torch.float32)
    checksum = linear_checksum(weight)
    placed = placed_checksum(checksum, weight)
    weight[17, 40] += 30
    outputs = linear(inputs, weight)
    check = check_rows(inputs, outputs, checksum, rounding_of(torch.float32, "cpu"))
    found = wrong_weight(
        inputs, check, weighted_deviations(inputs, outputs, placed), OUTPUTS, rounding_of(inputs.dtype, "cpu")
    )
    assert found is not None
    assert (found.row, found.column, found.columns) == (17, 40, (40,))
    assert found.within < 0.5
    assert found.size == pytest.approx(30, rel=1e-4)


def test_deviations_that_no_single_weight_explains_are_left_alone():
    inputs, weight = layer(torch.bfloat16)
    checksum, outputs = linear_checksum(weight), linear(inputs, weight)
    placed = placed_checksum(checksum, weight)
    outputs[:, 3] += torch.tensor([100.0, -100, 100, 100, -100, -100]).bfloat16()
    outputs[:, 5] += torch.tensor([7.0, 90, -300, 5, 5, 50]).bfloat16()
    check = check_rows(inputs, outputs, checksum, rounding_of(torch.bfloat16, "cpu"))
    assert check.wrong.any()
    assert (
        wrong_weight(
            inputs, check, weighted_deviations(inputs, outputs, placed), OUTPUTS, rounding_of(inputs.dtype, "cpu")
        )
        is None
    )


def test_one_token_leaves_the_column_open():
    inputs, weight = layer(torch.float32)
    checksum = linear_checksum(weight)
    placed = placed_checksum(checksum, weight)
    weight[9, 12] += 30
    outputs = linear(inputs[:1], weight)
    check = check_rows(inputs[:1], outputs, checksum, rounding_of(torch.float32, "cpu"))
    found = wrong_weight(
        inputs[:1], check, weighted_deviations(inputs[:1], outputs, placed), OUTPUTS, rounding_of(inputs.dtype, "cpu")
    )
    assert found is not None
    assert len(found.columns) == INPUTS


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_sums_of_words_are_those_of_plain_integers(dtype):
    random = generator(0, 0, "words")
    weight = (normal(random, 7, 3) * 20).to(dtype)
    own = (weight if dtype == torch.int8 else words(weight)).tolist()
    factors = multipliers(7).tolist()
    weighted = [sum(factor * row[k] for factor, row in zip(factors, own, strict=True)) for k in range(3)]
    plain = [[sum(row[k] for row in own), (found + 2**63) % 2**64 - 2**63] for k, found in enumerate(weighted)]
    assert column_word_sums(weight).tolist() == plain


def test_int8_words_come_back_and_clean_columns_are_clean():
    weight = torch.arange(-60, 60, dtype=torch.int8).view(12, 10)
    clean, sums = weight.clone(), column_word_sums(weight)
    assert changed_column(weight, 4, sums) is None
    weight[5, 4] ^= 1 << 6
    change = changed_column(weight, 4, sums)
    assert change == ChangedColumn(4, 5, int(clean[5, 4]))
    assert put_back(weight, change)
    assert torch.equal(weight, clean)


def test_two_changed_words_of_a_column_are_told_and_left():
    _, weight = layer(torch.bfloat16)
    sums = column_word_sums(weight)
    words(weight)[3, 7] ^= 1 << 14
    words(weight)[20, 7] ^= 1 << 2
    damage = weight.clone()
    change = changed_column(weight, 7, sums)
    assert change == ChangedColumn(7, None, None)
    assert not put_back(weight, change)
    assert torch.equal(words(weight), words(damage))


def test_two_changes_that_cancel_in_the_plain_sum_are_told_and_left():
    weight = torch.zeros(12, 3, dtype=torch.int8)
    sums = column_word_sums(weight)
    weight[2, 1], weight[9, 1] = 64, -64
    assert changed_column(weight, 1, sums) == ChangedColumn(1, None, None)


def test_sums_that_no_word_explains_name_no_row():
    weight = torch.zeros(12, 3, dtype=torch.int8)
    sums = column_word_sums(weight)
    # Sums that were damaged themselves: as of a word far beyond int8.
    sums[1] += 1000 * torch.stack([torch.tensor(1), multipliers(12)[4]])
    assert changed_column(weight, 1, sums) == ChangedColumn(1, None, None)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@given(
    first=st.integers(0, OUTPUTS - 1),
    second=st.integers(0, OUTPUTS - 1),
    bits=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_no_two_changed_words_are_taken_for_a_third(dtype, first, second, bits):
    assume(first != second)
    # Zeros everywhere: equal flips are equal changes, and those of rows r and r + 2 have their mean in r + 1.
    weight = torch.zeros(OUTPUTS, 2, dtype=dtype)
    sums, own = column_word_sums(weight), weight if dtype == torch.int8 else words(weight)
    for row, bit in zip((first, second), bits, strict=True):
        own[row, 1] ^= -128 if bit == 7 and dtype == torch.int8 else 1 << bit
    assert changed_column(weight, 1, sums) == ChangedColumn(1, None, None)
