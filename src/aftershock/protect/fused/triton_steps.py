"""The steps of a decoder on CUDA that check its products on the way. Imported only where triton is installed.

Same functions as `plain_steps`, which says what they compute.
"""

from math import gcd

import torch
import triton

from aftershock.protect.fused.kernels import check_outputs_kernel, gate_kernel, rotate_kernel
from aftershock.protect.fused.norm_kernel import add_norm_kernel
from aftershock.protect.fused.row_parts import SLOTS, GateChecks, Kept, Made, NormChecks, Predicted


def _parts(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Number of parts, and the power of two that holds them."""
    count = 1 if tensor is None else tensor.shape[1]
    return count, triton.next_power_of_2(count)


def _bound(product: Made | Predicted | None) -> tuple[torch.Tensor | None, tuple[float, ...]]:
    """Where a check keeps what it found, and the numbers of its threshold."""
    if product is None:
        return None, (0.0,) * 7
    own = product.bound
    return own.strains, (own.inputs, own.outputs, own.expected, own.floor, own.norm, own.offset, own.bias)


def _norm_launch(rows: int) -> tuple[int, int, bool]:
    """Rows of a program, warps, and whether checks have programs of their own: where rows don't fill the device."""
    return (1, 8, True) if rows < 128 else (2, 4, False)


def _gate_launch(rows: int) -> tuple[int, int, int]:
    """Rows and columns of a program, and warps."""
    return 1, 2048, 4


def add_norm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    checks: NormChecks,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """See `plain_steps.add_norm`."""
    columns = residual.shape[-1]
    rows = residual.numel() // columns
    total = residual if delta is None else torch.empty_like(residual)
    normed = torch.empty_like(residual)
    parts = None if checks.next is None else _empty_parts(rows, 1, residual)
    made = checks.delta if isinstance(checks.delta, Made) else None
    predicted = checks.delta if isinstance(checks.delta, Predicted) else None
    earlier = checks.earlier
    own, own_numbers = _bound(checks.delta)
    before, before_numbers = _bound(earlier.predicted if earlier else None)
    inputs = made.inputs.shape[-1] if made else 1
    some, warps, apart = _norm_launch(rows)
    delta_parts, block_delta_parts = _parts(predicted.parts if predicted else None)
    earlier_parts, block_earlier_parts = _parts(earlier.sums if earlier else None)
    predicted_parts, block_predicted_parts = _parts(earlier.predicted.parts if earlier else None)
    split = apart and (checks.delta is not None or earlier is not None)
    add_norm_kernel[(triton.cdiv(rows, some), 2 if split else 1)](
        residual,
        delta,
        weight,
        total,
        normed,
        made.inputs if made else None,
        made.checksum if made else None,
        predicted.parts if predicted else None,
        earlier.predicted.parts if earlier else None,
        earlier.sums if earlier else None,
        checks.next,
        parts,
        own,
        before,
        rows,
        columns,
        inputs,
        SLOTS,
        eps,
        *own_numbers,
        *before_numbers,
        ROWS=some,
        BLOCK=triton.next_power_of_2(columns),
        BLOCK_INPUTS=triton.next_power_of_2(inputs),
        DELTA_PARTS=delta_parts,
        BLOCK_DELTA_PARTS=block_delta_parts,
        EARLIER_PARTS=earlier_parts,
        BLOCK_EARLIER_PARTS=block_earlier_parts,
        EARLIER_PREDICTED_PARTS=predicted_parts,
        BLOCK_EARLIER_PREDICTED_PARTS=block_predicted_parts,
        SPLIT=split,
        num_warps=warps,
    )
    return total, normed, parts


def gate(
    gates: torch.Tensor, ups: torch.Tensor, checks: GateChecks
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """See `plain_steps.gate`."""
    columns = gates.shape[-1]
    rows = gates.numel() // columns
    activated = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    some, block, warps = _gate_launch(rows)
    parts = triton.cdiv(columns, block)
    predicted = None if checks.next is None else _empty_parts(rows, parts, gates)
    sums = _empty_parts(rows, parts, gates) if checks.sums else None
    gate_kernel[(triton.cdiv(rows, some), parts)](
        gates,
        ups,
        activated,
        checks.next,
        predicted,
        sums,
        rows,
        columns,
        gates.stride(-2),
        ups.stride(-2),
        ROWS=some,
        BLOCK=block,
        PARTS=parts,
        num_warps=warps,
    )
    return activated, predicted, sums


def rotate(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    head: int,
    kept: Kept | None,
    checked: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """See `plain_steps.rotate`."""
    batch, tokens, _ = queries.shape
    heads, key_heads = queries.shape[-1] // head, keys.shape[-1] // head
    # Token by token in memory: attention gives its output as it gets its queries, and the next product reads it so.
    turned = queries.new_empty(batch, tokens, heads, head)
    if kept is None:
        keys_out, values_out = (queries.new_empty(batch, key_heads, tokens, head) for _ in range(2))
        column = None
    else:
        keys_out, values_out, column = kept.keys, kept.values, kept.column
    together = gcd(heads, key_heads)
    query_parts, key_parts = heads // together, key_heads // together
    parts = query_parts + 2 * key_parts
    sums = _empty_parts(batch * tokens, parts, queries) if checked else None
    rotate_kernel[(batch * tokens, parts)](
        queries,
        keys,
        values,
        *angles,
        column,
        turned,
        keys_out,
        values_out,
        sums,
        tokens,
        queries.stride(-2),
        keys.stride(-2),
        values.stride(-2),
        angles[0].stride(0) if len(angles[0]) > 1 else 0,
        turned.stride(0),
        turned.stride(2),
        turned.stride(1),
        keys_out.stride(0),
        keys_out.stride(1),
        HEADS=together,
        BLOCK_HEADS=triton.next_power_of_2(together),
        QUERY_PARTS=query_parts,
        KEY_PARTS=key_parts,
        PARTS=parts,
        HALF=head // 2,
        BLOCK_HALF=triton.next_power_of_2(head // 2),
        num_warps=4,
    )
    return turned.transpose(1, 2), keys_out, values_out, sums


def check_outputs(outputs: torch.Tensor, product: Predicted) -> None:
    """See `plain_steps.check_outputs`."""
    columns = outputs.shape[-1]
    count, block = _parts(product.parts)
    strains, numbers = _bound(product)
    check_outputs_kernel[(outputs.numel() // columns,)](
        outputs,
        product.parts,
        strains,
        SLOTS,
        *numbers,
        COLUMNS=columns,
        PARTS=count,
        BLOCK_PARTS=block,
        BLOCK=min(16384, triton.next_power_of_2(columns)),
        num_warps=16,
    )


def _empty_parts(rows: int, parts: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(rows, parts, 2, dtype=torch.float32, device=like.device)
