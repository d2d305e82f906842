"""Changed words from sums of rows and columns."""

import itertools

import numpy as np
import pytest
import torch
from flipped import DTYPES, as_read, equal, flip, flip_randomly, integers, one_tensor, reader
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.detect import LineSums, differences, line_sums, multipliers
from aftershock.locate import Ambiguous, Restored, WordChanges, peel


def peeled(words, corrupt):
    """What peeling finds after `corrupt` was done to the words; a list of changes that is wrong fails here."""
    (tensor,) = words.tensors
    clean, sums = as_read(words), line_sums(words, tensor)
    corrupt(words)
    found = peel(differences(line_sums(words, tensor), sums), tensor, reader(words, tensor))
    if isinstance(found, WordChanges):
        assert equal(as_read(Restored(words, {"weight": found})), clean)
    return found


def add(words, rows, columns, deltas):
    view = integers(words)
    for (row, column), delta in zip(itertools.product(rows, columns), deltas, strict=True):
        view[row, column] += delta


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 16, 64])
def test_random_flips_are_found(dtype, count):
    for seed in range(5):
        found = peeled(one_tensor((200, 160), dtype), lambda words, seed=seed: flip_randomly(words, count, seed))
        assert len(found) == count
        assert all(len(bits) == 1 for bits in found.bits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_a_word(dtype):
    for bit in range(8 * dtype.itemsize):
        found = peeled(one_tensor((70, 65), dtype), lambda words, bit=bit: flip(words, [(69, 64)], bit))
        assert (found.rows.tolist(), found.columns.tolist(), found.bits) == ([69], [64], ((bit,),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "places",
    [
        [(5, column) for column in range(64)],  # a row
        [(row, 9) for row in range(100)],  # a column
        [(5, column) for column in range(90)] + [(row, 9) for row in range(100) if row != 5],  # both
        [(row, row % 90) for row in range(100)],  # a diagonal
        [(3, 1), (3, 2), (7, 2), (7, 5), (9, 5)],  # a chain
    ],
    ids=["row", "column", "row and column", "diagonal", "chain"],
)
def test_shapes_with_single_words_are_found(dtype, places):
    for bit in (0, 8 * dtype.itemsize - 1):
        assert len(peeled(one_tensor((100, 90), dtype), lambda words, bit=bit: flip(words, places, bit))) == len(places)


def test_a_stuck_column_of_a_long_tensor_is_found():
    words = one_tensor((49152, 64), torch.bfloat16)
    clear = int((integers(words)[:, 33] & (1 << 14) == 0).sum())

    def stick(words):
        integers(words)[:, 33] |= 1 << 14

    found = peeled(words, stick)
    assert len(found) == clear
    assert set(found.bits) == {(14,)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (5, 2), (2, 78), (75, 2), (1, 2), (2, 1)])
def test_rectangles_of_two_lines_are_found(dtype, shape):
    rows, columns = range(3, 3 + shape[0]), range(10, 10 + shape[1])
    size = shape[0] * shape[1]
    checkered = [7 * (-1) ** sum(place) for place in itertools.product(range(shape[0]), range(shape[1]))]
    for deltas in ([5] * size, checkered, [1 + number % 50 for number in range(size)]):
        words = one_tensor((80, 90), dtype)
        integers(words)[3:, 10:] = 20
        assert len(peeled(words, lambda words, deltas=deltas: add(words, rows, columns, deltas))) == size
    places = list(itertools.product(rows, columns))
    top = 8 * dtype.itemsize - 1
    assert len(peeled(one_tensor((80, 90), dtype), lambda words: flip(words, places, top))) == size


def test_sign_bits_that_cancel_are_found():
    """Changes of +2^31 and -2^31 in one row of fp32: the plain sum does not change."""
    words = one_tensor((70, 65), torch.float32)
    integers(words)[4, 7], integers(words)[4, 30] = 5, -5
    (tensor,) = words.tensors
    plain = line_sums(words, tensor).rows[4, 0]

    def corrupt(words):
        flip(words, [(4, 7), (4, 30)], 31)
        assert line_sums(words, tensor).rows[4, 0] == plain

    assert peeled(words, corrupt).columns.tolist() == [7, 30]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deltas", [(5,) * 9, (1, -2, 1, -2, 4, -2, 1, -2, 1), tuple(range(1, 10))])
def test_three_by_three_is_ambiguous_and_names_its_lines(dtype, deltas):
    def corrupt(words):
        add(words, (2, 30, 60), (1, 8, 64), deltas)

    words = one_tensor((70, 65), dtype)
    integers(words)[:] = 20
    found = peeled(words, corrupt)
    assert isinstance(found, Ambiguous)
    assert (found.rows, found.columns) == ((2, 30, 60), (1, 8, 64))
    assert "share rows and columns" in found.why


def test_what_fills_up_the_last_row_is_no_candidate():
    """The only words of the last row that can have changed are the tensor's own."""
    words = one_tensor((1, 11), torch.bfloat16)
    (tensor,) = words.tensors
    assert (tensor.rows, tensor.columns, tensor.filled) == (3, 4, 11)
    whole = torch.zeros(3, 4, dtype=torch.int64)
    whole[2, 3] = 1  # as sums would be, had the word that is not there changed
    lie = LineSums(
        torch.stack([whole.sum(1), (whole * multipliers(4)).sum(1)], 1),
        torch.stack([whole.sum(0), (whole * multipliers(3)[:, None]).sum(0)], 1),
    )
    found = peel(lie, tensor, reader(words, tensor))
    assert isinstance(found, Ambiguous)
    assert (found.rows, found.columns) == ((2,), (3,))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_changes_are_undone_or_told_ambiguous(data, dtype):
    """Never a wrong answer (`peeled` looks), whatever a few rows and columns become."""
    rows = data.draw(st.lists(st.integers(0, 65), min_size=1, max_size=4, unique=True))
    columns = data.draw(st.lists(st.integers(0, 69), min_size=1, max_size=4, unique=True))
    bits = 8 * dtype.itemsize
    word = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    new = np.array([[data.draw(word) for _ in columns] for _ in rows])

    def overwrite(words):
        view = integers(words)
        view[np.ix_(rows, columns)] = torch.from_numpy(new).to(view.dtype)

    found = peeled(one_tensor((66, 70), dtype), overwrite)
    if min(len(rows), len(columns)) < 3:
        assert isinstance(found, WordChanges)
