"""The steps between a decoder's products as Triton kernels that check those products on the way; `norm_kernel` too.

A row check needs four numbers of a row: the dot product of the input with the weight's checksum, the input's sum of
squares, and the output's sum and sum of squares. The step before a product has the input at hand and the step after it
the output, so a check costs no launch and next to no memory traffic. What is not asked for is None: Triton then leaves
its part of the kernel out.
"""

import triton
import triton.language as tl

from aftershock.protect.fused.row_kernels import add_four, add_two, judge, row_parts


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
    read = rounded.to(tl.float32)
    if checksum is not None:
        own = tl.load(checksum + column, mask=column < columns, other=0.0)
    place = (row * PARTS + part) * 2
    if checksum is not None and sums is not None:
        dot, squares, total, total_squares = tl.reduce(
            (read * own[None, :], read * read, first + second, first * first + second * second), 1, add_four
        )
    elif checksum is not None:
        dot, squares = tl.reduce((read * own[None, :], read * read), 1, add_two)
    elif sums is not None:
        total, total_squares = tl.reduce((first + second, first * first + second * second), 1, add_two)
    if checksum is not None:
        tl.store(predicted + place, dot, mask=here)
        tl.store(predicted + place + 1, squares, mask=here)
    if sums is not None:
        tl.store(sums + place, total, mask=here)
        tl.store(sums + place + 1, total_squares, mask=here)


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
    out_token,
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
    """Queries and keys of one token turned by its position, values as they are, written head by head; adds up all
    three. One program for each token and `HEADS` heads.
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
    if part < QUERY_PARTS:
        source = queries + wide * query_stride + part * HEADS * 2 * HALF
    elif part < QUERY_PARTS + KEY_PARTS:
        source = keys + wide * key_stride + (part - QUERY_PARTS) * HEADS * 2 * HALF
    else:
        source = values + wide * value_stride + (part - QUERY_PARTS - KEY_PARTS) * HEADS * 2 * HALF
    low = tl.load(source + inside, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + inside + HALF, mask=mask, other=0.0).to(tl.float32)
    word = queries_out.dtype.element_ty
    angle = batch * angle_batch_stride + token * (2 * HALF) + lane
    cosine = tl.load(cosines + angle, mask=lane < HALF, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sines + angle, mask=lane < HALF, other=0.0).to(tl.float32)[None, :]
    turned_low = (low * cosine).to(word).to(tl.float32) - (high * sine).to(word).to(tl.float32)
    turned_high = (high * cosine).to(word).to(tl.float32) + (low * sine).to(word).to(tl.float32)
    # Masks, not branches: torch.compile must see from the kernel's text which tensors it writes.
    is_query = part < QUERY_PARTS
    is_value = part >= QUERY_PARTS + KEY_PARTS
    out = batch.to(tl.int64) * out_batch + token * out_token + part * HEADS * out_head
    out_places = queries_out + out + head[:, None] * out_head + lane[None, :]
    tl.store(out_places, turned_low, mask=mask & is_query)
    tl.store(out_places + HALF, turned_high, mask=mask & is_query)
    kept = batch.to(tl.int64) * kept_batch + column * (2 * HALF) + head[:, None] * kept_head + lane[None, :]
    key_places = keys_out + kept + (part - QUERY_PARTS) * HEADS * kept_head
    is_key = (part >= QUERY_PARTS) & (part < QUERY_PARTS + KEY_PARTS)
    tl.store(key_places, turned_low, mask=mask & is_key)
    tl.store(key_places + HALF, turned_high, mask=mask & is_key)
    value_places = values_out + kept + (part - QUERY_PARTS - KEY_PARTS) * HEADS * kept_head
    tl.store(value_places, low, mask=mask & is_value)
    tl.store(value_places + HALF, high, mask=mask & is_value)
    if sums is not None:
        total, squares = tl.reduce(tl.reduce((low + high, low * low + high * high), 1, add_two), 0, add_two)
        place = sums + (row * PARTS + part) * 2
        tl.store(place, total)
        tl.store(place + 1, squares)


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
    norm,
    offset,
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
    dot, squares_in = row_parts(predicted, rows, rows >= 0, PARTS, BLOCK_PARTS)
    total = tl.sum(sums, axis=0) + tl.zeros_like(dot)
    squares_out = tl.sum(squares, axis=0) + tl.zeros_like(dot)
    judge(
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
        norm,
        offset,
        bias,
    )
