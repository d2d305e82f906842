"""Integer checks: exact for clean rows, whatever overflows, and exact about errors."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.detect import integer_column_deviations, integer_deviations_from, integer_row_deviations
from aftershock.numerics import generator

sizes = st.integers(1, 12)


def operands(seed, *shapes, low=-127, high=128):
    random = generator(seed, 0, "integers")
    return [torch.from_numpy(random.integers(low, high, shape)) for shape in shapes]


def exact_sums(left, right):
    """int32 as hardware has it: modulo 2^32."""
    return (left @ right).to(torch.int32)


@given(st.integers(0, 2**32), sizes, sizes, sizes)
def test_clean_rows_deviate_by_nothing(seed, m, k, n):
    left, right = operands(seed, (2, m, k), (2, k, n))
    sums = exact_sums(left, right)
    for kind in (torch.int8, torch.float32):
        found = integer_row_deviations(left.to(kind), right.to(kind), sums)
        assert found.shape == (2, m)
        assert not found.any()
        assert not integer_column_deviations(left.to(kind), right.to(kind), sums).any()


def test_sums_that_overflow_int32_are_clean():
    left, right = torch.full((1, 200_000), 127), torch.full((200_000, 3), 127)
    sums = exact_sums(left, right)
    assert int(sums[0, 0]) != 200_000 * 127 * 127
    assert not integer_row_deviations(left.to(torch.int8), right.to(torch.int8), sums).any()


@given(st.integers(0, 2**32), st.integers(0, 31), st.integers(0, 4), st.integers(0, 6))
def test_a_flipped_bit_deviates_by_its_worth(seed, bit, row, column):
    left, right = operands(seed, (5, 8), (8, 7))
    sums = exact_sums(left, right)
    before = int(sums[row, column])
    sums[row, column] ^= -(2**31) if bit == 31 else 1 << bit
    change = (before - int(sums[row, column]) + 2**31) % 2**32 - 2**31
    rows = integer_row_deviations(left.to(torch.int8), right.to(torch.int8), sums)
    assert rows.tolist() == [change if one == row else 0 for one in range(5)]
    columns = integer_column_deviations(left.to(torch.int8), right.to(torch.int8), sums)
    assert columns.tolist() == [change if one == column else 0 for one in range(7)]


def test_a_checksum_from_before_sees_a_weight_that_changed():
    left, right = operands(0, (5, 8), (8, 7))
    kept = right.sum(-1)
    right[2, 3] ^= 1 << 5
    sums = exact_sums(left, right)
    assert not integer_row_deviations(left.to(torch.int8), right.to(torch.int8), sums).any()
    found = integer_deviations_from(left.to(torch.int8), kept, sums)
    assert torch.equal(found.abs(), left[:, 2].abs() * 32)
