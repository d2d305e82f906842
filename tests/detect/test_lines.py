"""Sums of rows and columns against plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_words import TENSORS, flip, raw, words_of

from aftershock.detect import differences, line_sums, multipliers

MODULUS = 2**64


def plain_multiplier(number: int, seed: int = 0) -> int:
    """splitmix64 as Steele, Lea and Flood give it."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % MODULUS
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % MODULUS
    return (z ^ (z >> 31)) | 1


def unsigned(numbers: torch.Tensor) -> list:
    return [number % MODULUS for number in numbers.tolist()]


def plain_sums(data: bytes, rows: int, columns: int, width: int) -> tuple[list, list, list, list]:
    data = data.ljust(rows * columns * width, b"\0")
    starts = range(0, len(data), width)
    words = [int.from_bytes(data[at : at + width], "little", signed=True) for at in starts]
    matrix = [words[row * columns : (row + 1) * columns] for row in range(rows)]
    of = [plain_multiplier(number) for number in range(max(rows, columns))]
    by_column = [[matrix[row][column] for row in range(rows)] for column in range(columns)]
    return tuple(
        [sum(word * factor for word, factor in zip(line, factors, strict=False)) % MODULUS for line in lines]
        for lines in (matrix, by_column)
        for factors in ([1] * max(rows, columns), of)
    )


@given(st.integers(0, 2**64 - 1))
def test_multipliers_are_those_of_splitmix64(seed):
    found = unsigned(multipliers(5, seed))
    assert found == [plain_multiplier(number, seed) for number in range(5)]
    assert all(number % 2 for number in found)
    assert unsigned(multipliers(3, seed)) == found[:3]


def test_the_first_output_is_the_published_one():
    assert unsigned(multipliers(1)) == [0xE220A8397B1DCDAF]


@pytest.mark.parametrize("name", TENSORS)
def test_sums_are_those_of_plain_python(name):
    words, tensor = words_of(TENSORS[name])
    sums = line_sums(words, tensor)
    plain = plain_sums(raw(TENSORS[name]), tensor.rows, tensor.columns, tensor.width)
    found = (sums.rows[:, 0], sums.rows[:, 1], sums.columns[:, 0], sums.columns[:, 1])
    assert tuple(unsigned(one) for one in found) == plain


@given(st.binary(min_size=0, max_size=200), st.sampled_from([torch.int8, torch.int16, torch.int32]))
def test_sums_of_any_words(data, dtype):
    data = data[: len(data) // dtype.itemsize * dtype.itemsize]
    values = torch.tensor(list(data), dtype=torch.uint8).view(dtype)
    words, tensor = words_of(values)
    sums = line_sums(words, tensor)
    plain = plain_sums(data, tensor.rows, tensor.columns, tensor.width)
    assert tuple(unsigned(one) for one in (*sums.rows.T, *sums.columns.T)) == plain


@pytest.mark.parametrize(("part", "at_once"), [(1, 1), (1000, 100), (1 << 26, 300)])
def test_sums_do_not_depend_on_the_parts(monkeypatch, part, at_once):
    words, tensor = words_of(TENSORS["bf16"])
    whole = line_sums(words, tensor)
    monkeypatch.setattr("aftershock.models.words._PART", part)
    monkeypatch.setattr("aftershock.detect.lines._AT_ONCE", at_once)
    cut = line_sums(words, tensor)
    assert torch.equal(cut.rows, whole.rows)
    assert torch.equal(cut.columns, whole.columns)


def test_differences_name_row_and_column_of_one_change():
    changed = TENSORS["bf16"].clone()
    flip(changed, 2 * (5 * 65 + 7) + 1, 7)  # the sign of [5, 7]
    (words, tensor), (clean_words, _) = words_of(changed), words_of(TENSORS["bf16"])
    found = differences(line_sums(words, tensor), line_sums(clean_words, tensor))
    assert found.rows[:, 0].nonzero().tolist() == [[5]]
    assert found.columns[:, 0].nonzero().tolist() == [[7]]
    change = int(found.rows[5, 0])
    assert abs(change) == 2**15
    assert int(found.rows[5, 1]) % MODULUS == change * plain_multiplier(7) % MODULUS
    assert int(found.columns[7, 1]) % MODULUS == change * plain_multiplier(5) % MODULUS


@given(st.data())
def test_several_changes_of_a_line_do_not_cancel(data):
    """Of a row of 32-bit words, whatever the changes: the sums tell."""
    row = torch.arange(64, dtype=torch.int32).view(1, 64)
    places = data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=6, unique=True))
    changed = row.clone()
    for place in places:
        changed[0, place] ^= -(2**31) if data.draw(st.booleans()) else 1 << data.draw(st.integers(0, 30))
    (words, tensor), (clean_words, _) = words_of(changed.view(8, 8)), words_of(row.view(8, 8))
    found = differences(line_sums(words, tensor), line_sums(clean_words, tensor))
    assert set(found.rows[:, 1].nonzero().flatten().tolist()) == {place // 8 for place in places}
    assert set(found.columns[:, 1].nonzero().flatten().tolist()) == {place % 8 for place in places}
