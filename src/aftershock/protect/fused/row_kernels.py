"""What the kernels of a decoder's steps share: sums of rows, and a row's check.

Thresholds are those of `row_parts.Bound`. What a check found is in its `strains`, fp32 of shape (slots,): the
largest |D| / T so far, rows dealt out to slots.
"""

import triton
import triton.language as tl


@triton.jit
def add_two(first, second, other_first, other_second):
    return first + other_first, second + other_second


@triton.jit
def add_four(first, second, third, fourth, other_first, other_second, other_third, other_fourth):
    return first + other_first, second + other_second, third + other_third, fourth + other_fourth


@triton.jit
def judge(
    strains,
    slots,
    row,
    here,
    dot,
    squares_in,
    total,
    squares_out,
    inputs,
    outputs,
    expected,
    floor,
    norm,
    offset,
    bias,
):
    """Keep |D| / T of each row; infinite where it says nothing: NaN, a norm too large for fp32, any D where T is 0; and
    where outputs are larger than inputs and the weight allow."""
    sums = dot + bias
    size = tl.abs(sums - total)
    read, found = tl.sqrt(squares_in), tl.sqrt(squares_out)
    largest = norm * read + offset
    threshold = inputs * read + outputs * tl.minimum(found, largest) + expected * tl.abs(sums) + floor
    told = (size < float("inf")) & (threshold < float("inf")) & ((threshold > 0) | (size == 0))
    told = told & (found <= largest + floor)
    strain = tl.where(told, size / tl.where(threshold > 0, threshold, 1.0), float("inf"))
    tl.atomic_max(strains + row % slots, strain, mask=here, sem="relaxed")


@triton.jit
def row_parts(base, rows, here, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """Both numbers of each row, added up over its parts; `base` is fp32 of shape (rows, parts, 2)."""
    part = tl.arange(0, BLOCK_PARTS)
    places = base + (rows[:, None] * PARTS + part[None, :]) * 2
    mask = here[:, None] & (part < PARTS)[None, :]
    first, second = tl.load(places, mask=mask, other=0.0), tl.load(places + 1, mask=mask, other=0.0)
    return tl.reduce((first, second), 1, add_two)
