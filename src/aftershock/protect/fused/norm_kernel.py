"""The step before a decoder's products that adds a residual and norms it, as a Triton kernel (see `kernels`)."""

import triton
import triton.language as tl

from aftershock.protect.fused.row_kernels import add_two, judge, row_parts


@triton.jit
def add_norm_kernel(
    residual,
    delta,
    weight,
    total,
    normed,
    delta_inputs,
    delta_checksum,
    delta_predicted,
    earlier_predicted,
    earlier_sums,
    checksum,
    predicted,
    delta_strains,
    earlier_strains,
    rows,
    columns,
    inputs,
    slots,
    eps,
    delta_by_inputs,
    delta_by_outputs,
    delta_by_expected,
    delta_floor,
    delta_norm,
    delta_offset,
    delta_bias,
    earlier_by_inputs,
    earlier_by_outputs,
    earlier_by_expected,
    earlier_floor,
    earlier_norm,
    earlier_offset,
    earlier_bias,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    DELTA_PARTS: tl.constexpr,
    BLOCK_DELTA_PARTS: tl.constexpr,
    EARLIER_PARTS: tl.constexpr,
    BLOCK_EARLIER_PARTS: tl.constexpr,
    EARLIER_PREDICTED_PARTS: tl.constexpr,
    BLOCK_EARLIER_PREDICTED_PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """residual + delta, and its RMS norm times weight. Checks the product that made delta and an earlier one, and
    predicts the row sum of the next.

    With `SPLIT`, programs in pairs: one norms, one checks. Few rows leave most of a GPU idle.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    here = row < rows
    wide = row.to(tl.int64)
    mask = here[:, None] & (column < columns)[None, :]
    places = wide[:, None] * columns + column[None, :]
    if delta is not None:
        added = tl.load(delta + places, mask=mask, other=0.0).to(tl.float32)
    if not SPLIT or tl.program_id(1) == 0:
        value = tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
        if delta is not None:
            value = (value + added).to(total.dtype.element_ty).to(tl.float32)
            tl.store(total + places, value, mask=mask)
        mean = tl.sum(value * value, axis=1) / columns
        scaled = (value * tl.rsqrt(mean + eps)[:, None]).to(normed.dtype.element_ty).to(tl.float32)
        factor = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
        rounded = (scaled * factor[None, :]).to(normed.dtype.element_ty)
        tl.store(normed + places, rounded, mask=mask)
        if checksum is not None:
            read = rounded.to(tl.float32)
            sums = tl.load(checksum + column, mask=column < columns, other=0.0)
            next_dot, next_squares = tl.reduce((read * sums[None, :], read * read), 1, add_two)
            tl.store(predicted + row * 2, next_dot, mask=here)
            tl.store(predicted + row * 2 + 1, next_squares, mask=here)
    if not SPLIT or tl.program_id(1) == 1:
        if delta_strains is not None:
            if delta_checksum is not None:
                at = tl.arange(0, BLOCK_INPUTS)
                read_mask = here[:, None] & (at < inputs)[None, :]
                some = tl.load(delta_inputs + wide[:, None] * inputs + at[None, :], mask=read_mask, other=0.0)
                some = some.to(tl.float32)
                own = tl.load(delta_checksum + at, mask=at < inputs, other=0.0)
                dot, squares = tl.reduce((some * own[None, :], some * some), 1, add_two)
            else:
                dot, squares = row_parts(delta_predicted, row, here, DELTA_PARTS, BLOCK_DELTA_PARTS)
            delta_total, delta_squares = tl.reduce((added, added * added), 1, add_two)
            judge(
                delta_strains,
                slots,
                row,
                here,
                dot,
                squares,
                delta_total,
                delta_squares,
                delta_by_inputs,
                delta_by_outputs,
                delta_by_expected,
                delta_floor,
                delta_norm,
                delta_offset,
                delta_bias,
            )
        if earlier_strains is not None:
            before, squares_before = row_parts(
                earlier_predicted, row, here, EARLIER_PREDICTED_PARTS, BLOCK_EARLIER_PREDICTED_PARTS
            )
            summed, squares_summed = row_parts(earlier_sums, row, here, EARLIER_PARTS, BLOCK_EARLIER_PARTS)
            judge(
                earlier_strains,
                slots,
                row,
                here,
                before,
                squares_before,
                summed,
                squares_summed,
                earlier_by_inputs,
                earlier_by_outputs,
                earlier_by_expected,
                earlier_floor,
                earlier_norm,
                earlier_offset,
                earlier_bias,
            )
