"""Changed words from sums of rows and columns."""

import itertools

import numpy as np
import pytest
import torch
from flipped import DTYPES, as_read, equal, flip, flip_randomly, integers, one_tensor, reader
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.detect import LineSums, differences, line_sums, multipliers
from aftershock.locate import Ambiguous, Restored, WordChanges, peel, peeling
from aftershock.models import TensorWords


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


@pytest.mark.parametrize("real", [0, 1])
def test_a_pair_is_taken_where_it_is_the_only_one_that_fits(real):
    """Row 5 has the same sums whichever of two pairs changed: it waits until the other rows tell."""
    pairs = {(8, 20): (-206_059, -1_030_503), (40, 64): (-1_039_403, -197_159)}
    weights = [int(number) for number in multipliers(65)]
    sums = [
        (sum(deltas), sum(weights[column] * delta for column, delta in zip(columns, deltas, strict=True)) % 2**64)
        for columns, deltas in pairs.items()
    ]
    assert sums[0] == sums[1]
    columns, deltas = list(pairs.items())[real]

    def corrupt(words):
        add(words, [5], columns, deltas)
        add(words, [30, 31], (8, 20), [1, 2, 3, 4])
        add(words, [40, 41, 42], (40, 64), [5, 6, 7, 8, 9, 10])

    words = one_tensor((70, 65), torch.float32)
    integers(words)[:] = 20
    found = peeled(words, corrupt)
    assert isinstance(found, WordChanges)
    assert found.columns[found.rows == 5].tolist() == list(columns)


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


def sums_of(tensor, deltas):
    """What changes by row and column add to the sums of a tensor."""
    rows, columns = torch.zeros(tensor.rows, 2).long(), torch.zeros(tensor.columns, 2).long()
    by_row, by_column = multipliers(tensor.rows), multipliers(tensor.columns)
    for (row, column), delta in deltas.items():
        rows[row] += torch.stack([torch.tensor(delta), by_column[column] * delta])
        columns[column] += torch.stack([torch.tensor(delta), by_row[row] * delta])
    return LineSums(rows, columns)


def test_what_fills_up_the_last_row_is_no_candidate():
    """The only words of the last row that can have changed are the tensor's own."""
    words = one_tensor((1, 11), torch.bfloat16)
    (tensor,) = words.tensors
    assert (tensor.rows, tensor.columns, tensor.filled) == (3, 4, 11)
    found = peel(sums_of(tensor, {(2, 3): 1}), tensor, reader(words, tensor))
    assert isinstance(found, Ambiguous)
    assert (found.rows, found.columns) == ((2,), (3,))


@pytest.mark.parametrize(("delta", "can_be"), [(-107, True), (148, True), (-108, False), (149, False), (256, False)])
def test_a_change_leaves_a_word_of_the_tensors_width(delta, can_be):
    words = one_tensor((70, 65), torch.int8)
    (tensor,) = words.tensors
    integers(words)[4, 7] = 20
    found = peel(sums_of(tensor, {(4, 7): delta}), tensor, reader(words, tensor))
    assert isinstance(found, WordChanges) == can_be
    if can_be:
        assert found.clean.tolist() == [20 - delta & 255]


ALIKE = 45_887, 67_140
"""Two columns whose multipliers have the same lowest 34 bits."""


def wide():
    """A tensor of two rows and so many columns, and words that are all zero."""
    assert (multipliers(ALIKE[1] + 1)[list(ALIKE)] % 2**34).unique().numel() == 1
    tensor = TensorWords("weight", "float32", (2, ALIKE[1] + 1), 8 * (ALIKE[1] + 1), 2, ALIKE[1] + 1, 4)
    return tensor, lambda rows, _columns: np.zeros(len(rows), np.int64)


@pytest.mark.parametrize("column", ALIKE)
def test_a_single_word_is_taken_where_it_is_the_only_one_that_fits(column):
    """By its row a sign bit may be that of either column; the columns tell."""
    tensor, zeros = wide()
    (other,) = {*ALIKE} - {column}
    found = peel(sums_of(tensor, {(0, column): 1 << 31, (1, other): 1 << 31}), tensor, zeros)
    assert isinstance(found, WordChanges)
    assert (found.rows.tolist(), found.columns.tolist()) == ([0, 1], [column, other])


SQUARE = ((0, 0), (0, 1), (1, 0), (1, 1))


@pytest.mark.parametrize("at_once", [1 << 20, 1])
@pytest.mark.parametrize(("squares", "found"), [(32, True), (33, False)])
def test_pairs_are_looked_for_among_64_places_of_a_line(monkeypatch, squares, found, at_once):
    """However many of them are looked at in one go."""
    monkeypatch.setattr(peeling, "_AT_ONCE", at_once)
    places = [(2 * square + row, 2 * square + column) for square in range(squares) for row, column in SQUARE]
    changes = peeled(one_tensor((70, 80), torch.bfloat16), lambda words: flip(words, places, 3))
    assert isinstance(changes, WordChanges) == found


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
