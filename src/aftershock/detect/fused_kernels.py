"""The steps between a decoder's products as Triton kernels that check those products on the way.

A row check needs four numbers of a row: the dot product of the input with the weight's checksum, the input's sum of
squares, and the output's sum and sum of squares. The step before a product has the input at hand and the step after it
the output, so a check costs no launch and next to no memory traffic. What is not asked for is None: Triton then leaves
its part of the kernel out.

What a check found is in its `strains`, fp32 of shape (slots,): the largest |D| / T so far, rows dealt out to slots.
Thresholds are those of `products.Tolerance`.
"""

import triton
import triton.language as tl


@triton.jit
def _judge(strains, slots, row, here, dot, squares_in, total, squares_out, inputs, outputs, expected, floor, bias):
    """Keep |D| / T of each row; infinite where it says nothing: NaN, a norm too large for fp32, any D where T is 0."""
    sums = dot + bias
    size = tl.abs(sums - total)
    threshold = inputs * tl.sqrt(squares_in) + outputs * tl.sqrt(squares_out) + expected * tl.abs(sums) + floor
    told = (size < float("inf")) & (threshold < float("inf")) & ((threshold > 0) | (size == 0))
    strain = tl.where(told, size / tl.where(threshold > 0, threshold, 1.0), float("inf"))
    tl.atomic_max(strains + row % slots, strain, mask=here, sem="relaxed")


@triton.jit
def _parts(base, rows, here, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """Both numbers of each row, added up over its parts; `base` is fp32 of shape (rows, parts, 2)."""
    part = tl.arange(0, BLOCK_PARTS)
    places = base + (rows[:, None] * PARTS + part[None, :]) * 2
    mask = here[:, None] & (part < PARTS)[None, :]
    first = tl.sum(tl.load(places, mask=mask, other=0.0), axis=1)
    return first, tl.sum(tl.load(places + 1, mask=mask, other=0.0), axis=1)


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
    delta_bias,
    earlier_by_inputs,
    earlier_by_outputs,
    earlier_by_expected,
    earlier_floor,
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
):
    """residual + delta, and its RMS norm times weight. Checks the product that made delta and an earlier one, and
    predicts the row sum of the next."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    here = row < rows
    wide = row.to(tl.int64)
    mask = here[:, None] & (column < columns)[None, :]
    places = wide[:, None] * columns + column[None, :]
    value = tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
    if delta is not None:
        added = tl.load(delta + places, mask=mask, other=0.0).to(tl.float32)
        value = (value + added).to(total.dtype.element_ty).to(tl.float32)
        tl.store(total + places, value, mask=mask)
    mean = tl.sum(value * value, axis=1) / columns
    scaled = value * tl.rsqrt(mean + eps)[:, None]
    factor = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    scaled = scaled.to(normed.dtype.element_ty).to(tl.float32) * factor[None, :]
    rounded = scaled.to(normed.dtype.element_ty)
    tl.store(normed + places, rounded, mask=mask)
    if checksum is not None:
        read = rounded.to(tl.float32)
        sums = tl.load(checksum + column, mask=column < columns, other=0.0)
        tl.store(predicted + row * 2, tl.sum(read * sums[None, :], axis=1), mask=here)
        tl.store(predicted + row * 2 + 1, tl.sum(read * read, axis=1), mask=here)
    if delta_checksum is not None:
        at = tl.arange(0, BLOCK_INPUTS)
        some = tl.load(
            delta_inputs + wide[:, None] * inputs + at[None, :], mask=here[:, None] & (at < inputs)[None, :], other=0.0
        ).to(tl.float32)
        own = tl.load(delta_checksum + at, mask=at < inputs, other=0.0)
        dot, squares = tl.sum(some * own[None, :], axis=1), tl.sum(some * some, axis=1)
    if delta_predicted is not None:
        dot, squares = _parts(delta_predicted, row, here, DELTA_PARTS, BLOCK_DELTA_PARTS)
    if delta_strains is not None:
        _judge(
            delta_strains,
            slots,
            row,
            here,
            dot,
            squares,
            tl.sum(added, axis=1),
            tl.sum(added * added, axis=1),
            delta_by_inputs,
            delta_by_outputs,
            delta_by_expected,
            delta_floor,
            delta_bias,
        )
    if earlier_strains is not None:
        before, squares_before = _parts(
            earlier_predicted, row, here, EARLIER_PREDICTED_PARTS, BLOCK_EARLIER_PREDICTED_PARTS
        )
        summed, squares_summed = _parts(earlier_sums, row, here, EARLIER_PARTS, BLOCK_EARLIER_PARTS)
        _judge(
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
            earlier_bias,
        )


@triton.jit
def gate_kernel(
    gate,
    up,
    activated,
    checksum,
    predicted,
    sums,
    rows,
    columns,
    gate_stride,
    up_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """SiLU(gate) x up. Adds up gate and up, and predicts the row sum of the product that comes next."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    here = row < rows
    wide = row.to(tl.int64)
    mask = here[:, None] & (column < columns)[None, :]
    first = tl.load(gate + wide[:, None] * gate_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(up + wide[:, None] * up_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    word = activated.dtype.element_ty
    open_ = (first / (1.0 + tl.exp(-first))).to(word).to(tl.float32)
    rounded = (open_ * second).to(word)
    tl.store(activated + wide[:, None] * columns + column[None, :], rounded, mask=mask)
    if checksum is not None:
        read = rounded.to(tl.float32)
        own = tl.load(checksum + column, mask=column < columns, other=0.0)
        place = predicted + (row * PARTS + part) * 2
        tl.store(place, tl.sum(read * own[None, :], axis=1), mask=here)
        tl.store(place + 1, tl.sum(read * read, axis=1), mask=here)
    if sums is not None:
        place = sums + (row * PARTS + part) * 2
        tl.store(place, tl.sum(first + second, axis=1), mask=here)
        tl.store(place + 1, tl.sum(first * first + second * second, axis=1), mask=here)


@triton.jit
def rotate_kernel(
    queries,
    keys,
    values,
    cosines,
    sines,
    positions,
    queries_out,
    keys_out,
    values_out,
    sums,
    tokens,
    query_stride,
    key_stride,
    value_stride,
    angle_batch_stride,
    out_batch,
    out_head,
    kept_batch,
    kept_head,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    QUERY_PARTS: tl.constexpr,
    KEY_PARTS: tl.constexpr,
    PARTS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """Queries and keys of one token turned by its position, values as they are, written head by head; adds up all three.

    One program for each token and `HEADS` heads.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    batch, token = row // tokens, row % tokens
    wide = row.to(tl.int64)
    head, lane = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_HALF)
    mask = (head < HEADS)[:, None] & (lane < HALF)[None, :]
    inside = head[:, None] * (2 * HALF) + lane[None, :]
    column = token
    if positions is not None:
        column += tl.load(positions)
    kept = batch.to(tl.int64) * kept_batch + column * (2 * HALF)
    if part < QUERY_PARTS:
        source = queries + wide * query_stride + part * HEADS * 2 * HALF
        target = queries_out + batch.to(tl.int64) * out_batch + token * (2 * HALF) + part * HEADS * out_head
        step = out_head
    elif part < QUERY_PARTS + KEY_PARTS:
        at = part - QUERY_PARTS
        source = keys + wide * key_stride + at * HEADS * 2 * HALF
        target = keys_out + kept + at * HEADS * kept_head
        step = kept_head
    else:
        at = part - QUERY_PARTS - KEY_PARTS
        source = values + wide * value_stride + at * HEADS * 2 * HALF
        target = values_out + kept + at * HEADS * kept_head
        step = kept_head
    low = tl.load(source + inside, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + inside + HALF, mask=mask, other=0.0).to(tl.float32)
    word = queries_out.dtype.element_ty
    outside = head[:, None] * step + lane[None, :]
    if part < QUERY_PARTS + KEY_PARTS:
        angle = batch * angle_batch_stride + token * (2 * HALF) + lane
        cosine = tl.load(cosines + angle, mask=lane < HALF, other=0.0).to(tl.float32)[None, :]
        sine = tl.load(sines + angle, mask=lane < HALF, other=0.0).to(tl.float32)[None, :]
        turned_low = (low * cosine).to(word).to(tl.float32) - (high * sine).to(word).to(tl.float32)
        turned_high = (high * cosine).to(word).to(tl.float32) + (low * sine).to(word).to(tl.float32)
        tl.store(target + outside, turned_low, mask=mask)
        tl.store(target + outside + HALF, turned_high, mask=mask)
    else:
        tl.store(target + outside, low, mask=mask)
        tl.store(target + outside + HALF, high, mask=mask)
    if sums is not None:
        place = sums + (row * PARTS + part) * 2
        tl.store(place, tl.sum(tl.sum(low + high, axis=1), axis=0))
        tl.store(place + 1, tl.sum(tl.sum(low * low + high * high, axis=1), axis=0))


@triton.jit
def check_outputs_kernel(
    outputs,
    predicted,
    strains,
    slots,
    by_inputs,
    by_outputs,
    by_expected,
    floor,
    bias,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Check a product's output, one row a program, where no step after it reads it whole (a head's logits)."""
    row = tl.program_id(0)
    wide = row.to(tl.int64)
    column = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, COLUMNS, BLOCK):
        some = tl.load(outputs + wide * COLUMNS + first + column, mask=first + column < COLUMNS, other=0.0)
        some = some.to(tl.float32)
        sums += some
        squares += some * some
    rows = row + tl.arange(0, 1)
    dot, squares_in = _parts(predicted, rows, rows >= 0, PARTS, BLOCK_PARTS)
    total = tl.sum(sums, axis=0) + tl.zeros_like(dot)
    squares_out = tl.sum(squares, axis=0) + tl.zeros_like(dot)
    _judge(
        strains,
        slots,
        rows,
        rows >= 0,
        dot,
        squares_in,
        total,
        squares_out,
        by_inputs,
        by_outputs,
        by_expected,
        floor,
        bias,
    )
