"""The steps of a Llama-shaped decoder that check its products on the way, by torch's operations, on any device.

Values are rounded where transformers rounds them. On CUDA `triton_steps` has the same functions as one kernel each.
"""

import torch

from aftershock.protect.fused.row_parts import Bound, GateChecks, Kept, Made, NormChecks, Predicted, judge


def add_norm(
    residual: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    checks: NormChecks,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`residual` + `delta`, both (..., columns), and its RMS norm times `weight`, (columns,).

    Checks the product that made `delta` and an earlier one, and gives what it predicts of the next
    product's row sums, fp32 of shape (rows, parts, 2), None where `checks.next` is.
    """
    total = residual if delta is None else residual + delta
    wide = total.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normed = weight * (wide * scale).to(total.dtype)
    made = None
    if isinstance(checks.delta, Made):
        made = _prediction(checks.delta.inputs, checks.delta.checksum)
    elif isinstance(checks.delta, Predicted):
        made = checks.delta.parts
    if checks.delta is not None and made is not None and delta is not None:
        _compare(made, _sums(delta), checks.delta.bound)
    if checks.earlier is not None:
        _compare(checks.earlier.predicted.parts, checks.earlier.sums, checks.earlier.predicted.bound)
    return total, normed, None if checks.next is None else _prediction(normed, checks.next)


def gate(
    gates: torch.Tensor, ups: torch.Tensor, checks: GateChecks
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """SiLU(`gates`) x `ups`, (..., columns) each; what it predicts of the next product's row sums, and the sums and
    sums of squares of gates and ups together: fp32 of shape (rows, parts, 2), None where not asked for."""
    activated = torch.nn.functional.silu(gates) * ups
    predicted = None if checks.next is None else _prediction(activated, checks.next)
    return activated, predicted, _sums(gates) + _sums(ups) if checks.sums else None


def rotate(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    head: int,
    kept: Kept | None,
    checked: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Queries and keys turned by their positions, and values, (batch, heads, tokens, head size) each.

    `queries`, `keys` and `values` are (batch, tokens, heads x head size); `angles` are cosines and sines, (1 or batch,
    tokens, head size), the same in both halves of a head. Keys and values are written into the cache that is `kept`,
    and the whole of it is given. Last come sums and sums of squares of all three before they were turned, fp32 of shape
    (rows, parts, 2), where `checked`.
    """
    sums = _sums(queries) + _sums(keys) + _sums(values) if checked else None
    cosines, sines = (one.unsqueeze(1) for one in angles)
    queries, keys, values = (one.reshape(*one.shape[:2], -1, head).transpose(1, 2) for one in (queries, keys, values))
    queries, keys = (one * cosines + _half_turned(one) * sines for one in (queries, keys))
    if kept is not None:
        columns = kept.column + torch.arange(keys.shape[2], device=keys.device)
        keys, values = kept.keys.index_copy_(2, columns, keys), kept.values.index_copy_(2, columns, values)
    return queries, keys, values, sums


def check_outputs(outputs: torch.Tensor, product: Predicted) -> None:
    """Check the output of a product, (..., columns), that no step after it reads whole."""
    _compare(product.parts, _sums(outputs), product.bound)


def _prediction(inputs: torch.Tensor, checksum: torch.Tensor) -> torch.Tensor:
    """Dot product with the checksum and sum of squares of each row: fp32, (rows, 1, 2)."""
    wide = inputs.flatten(0, -2).float()
    return torch.stack([wide @ checksum, wide.square().sum(-1)], dim=-1).unsqueeze(1)


def _sums(outputs: torch.Tensor) -> torch.Tensor:
    """Sum and sum of squares of each row: fp32, (rows, 1, 2)."""
    wide = outputs.flatten(0, -2).float()
    return torch.stack([wide.sum(-1), wide.square().sum(-1)], dim=-1).unsqueeze(1)


def _compare(predicted: torch.Tensor, sums: torch.Tensor, own: Bound) -> None:
    (dot, squares_in), (total, squares_out) = predicted.sum(1).unbind(-1), sums.sum(1).unbind(-1)
    judge(dot, squares_in, total, squares_out, own)


def _half_turned(values: torch.Tensor) -> torch.Tensor:
    low, high = values.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1)
