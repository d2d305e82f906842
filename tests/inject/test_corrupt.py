"""Corruptions of stored words against plain arithmetic on integers and on Python's own float conversions."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.faults import Add, Corruption, Flip, Replace, StuckAt
from aftershock.inject import corrupt
from aftershock.numerics import FORMATS, NumberFormat, format_of

_EDGES = {
    # zeros, smallest and largest subnormal, smallest normal, one, largest finite, infinity, NaNs with payload
    "float32": (0x0, 0x1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF),
    "float16": (0x0, 0x1, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF),
    "bfloat16": (0x0, 0x1, 0x7F, 0x80, 0x3F80, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x7FFF),
}


FP32 = format_of("float32")


def words_of(number_format: NumberFormat) -> st.SearchStrategy[int]:
    sign = 1 << (number_format.bits - 1)
    edges = [word | negative for word in _EDGES[number_format.name] for negative in (0, sign)]
    return st.integers(0, 2 * sign - 1) | st.sampled_from(edges)


def bit_sets(number_format: NumberFormat) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, number_format.bits - 1), min_size=1).map(sorted).map(tuple)


def corruptions(number_format: NumberFormat) -> st.SearchStrategy[Corruption]:
    numbers = st.floats() | st.floats(-4, 4) | st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 1e300, 65520.0])
    return (
        st.builds(Flip, bit_sets(number_format))
        | st.builds(StuckAt, bit_sets(number_format), st.sampled_from([0, 1]))
        | st.builds(Replace, numbers)
        | st.builds(Add, numbers)
    )


def value(word: int, number_format: NumberFormat) -> float:
    """The number that a word stands for, by struct: bfloat16 is the upper half of a float32."""
    if number_format.name == "float16":
        return float(struct.unpack("<e", struct.pack("<H", word))[0])
    return float(struct.unpack("<f", struct.pack("<I", word if number_format.bits == 32 else word << 16))[0])


def nearest(number: float, number_format: NumberFormat) -> int:
    """The word nearest to a number, ties to even: a search over words, which grow with their values."""
    sign = math.copysign(1.0, number) < 0
    top = 1 << (number_format.bits - 1)
    infinity = ((1 << number_format.exponent_bits) - 1) << number_format.mantissa_bits
    if math.isinf(number):
        return infinity | (top if sign else 0)
    target = abs(Fraction(number))

    def magnitude(word: int) -> Fraction:
        # Beyond the largest finite value lies the next one an unbounded exponent would give.
        last = Fraction(value(infinity - 1, number_format))
        return (
            2 * last - Fraction(value(infinity - 2, number_format))
            if word == infinity
            else Fraction(value(word, number_format))
        )

    low, high = 0, infinity
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if magnitude(middle) <= target else (low, middle - 1)
    if low < infinity:
        below, above = target - magnitude(low), magnitude(low + 1) - target
        low += below > above or (below == above and low % 2 == 1)
    return low | (top if sign else 0)


def expected(word: int, corruption: Corruption, number_format: NumberFormat) -> int | None:
    """The corrupted word; None stands for any NaN."""
    if isinstance(corruption, Flip):
        for bit in corruption.bits:
            word ^= 1 << bit
        return word
    if isinstance(corruption, StuckAt):
        for bit in corruption.bits:
            word = word | 1 << bit if corruption.level else word & ~(1 << bit)
        return word
    number = corruption.value if isinstance(corruption, Replace) else value(word, number_format) + corruption.amount
    # Torch rounds fp64 to fp32 on the way to a narrower format.
    return None if math.isnan(number) else nearest(value(nearest(number, FP32), FP32), number_format)


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
@settings(max_examples=70)
@given(data=st.data())
def test_every_corruption_of_every_word(number_format: NumberFormat, data: st.DataObject) -> None:
    pairs = st.tuples(words_of(number_format), corruptions(number_format))
    cases = data.draw(st.lists(pairs, min_size=1, max_size=6))
    unsigned = np.array([word for word, _ in cases], dtype=f"uint{number_format.bits}")
    old = torch.from_numpy(unsigned.view(f"int{number_format.bits}").copy())
    before = old.clone()
    new = corrupt(old, [corruption for _, corruption in cases], number_format)
    assert new.dtype == number_format.word
    assert torch.equal(old, before)
    found = new.numpy().view(unsigned.dtype).tolist()
    for (word, corruption), result in zip(cases, found, strict=True):
        wanted = expected(word, corruption, number_format)
        if wanted is None:
            assert math.isnan(value(result, number_format)), (hex(word), corruption, hex(result))
        else:
            assert result == wanted, (hex(word), corruption, hex(result), hex(wanted))


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
@given(data=st.data())
@settings(max_examples=40)
def test_a_flip_undoes_itself_and_a_stuck_bit_stays(number_format: NumberFormat, data: st.DataObject) -> None:
    bits = data.draw(bit_sets(number_format))
    word = data.draw(words_of(number_format))
    signed = word - (1 << number_format.bits) if word >> (number_format.bits - 1) else word
    old = torch.tensor([signed], dtype=number_format.word)

    def twice(corruption: Corruption) -> tuple[torch.Tensor, torch.Tensor]:
        once = corrupt(old, [corruption], number_format)
        return once, corrupt(once, [corruption], number_format)

    assert torch.equal(twice(Flip(bits))[1], old)
    for level in (0, 1):
        once, again = twice(StuckAt(bits, level))
        assert torch.equal(once, again)


def test_the_sign_bit_of_each_format() -> None:
    for number_format in FORMATS:
        old = torch.tensor([1.5], dtype=number_format.dtype).view(number_format.word)
        new = corrupt(old, [Flip((number_format.bits - 1,))], number_format)
        assert new.view(number_format.dtype).item() == -1.5
