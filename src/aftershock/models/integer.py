"""Projections computed in integers: W8A8, int8 weights times int8 activations, summed in int32."""

from collections.abc import Callable, Sequence

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.errors import InputError
from aftershock.models.components import OutputSite, Rows

_MIGRATION = 0.5
"""How much of the activations' range goes into the weights (SmoothQuant, equation 4: alpha)."""

_LEAST_ROWS, _ROW_STEP = 32, 8
"""`torch._int_mm` on CUDA wants more than 16 rows, in steps of 8."""

_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2")

_LARGEST = 127
"""The largest int8 used, so that the range is symmetric."""


class Accumulator(torch.nn.Module):
    """Where int32 sums of products pass by, with what was multiplied: a hook here can strike them, or check them."""

    def forward(self, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """`sums` (int32, shape (..., m, n)), as they are, of whole numbers within +-127: `left` (..., m, k) by `right`
        (..., k, n), int8 or fp32."""
        return sums


class Int8Linear(torch.nn.Module):
    """A linear map in integers: int8 weights, one scale a channel; int8 activations, one scale a token; int32 sums.

    The sums, shape (rows, tokens, channels), pass through `accumulator`, where a fault in a sum can strike; they are
    exact, so that they depend neither on the shape nor on the kernel. Scaling back is fp32 arithmetic, `smooth` the
    factors by which channels of the input were divided and the weights multiplied. Outputs of the channels in `again`
    are quantised again (`scaled_back`).
    """

    weight: torch.Tensor
    scale: torch.Tensor
    smooth: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, smooth: torch.Tensor, again: Sequence[Rows] = ()
    ) -> None:
        """`weight`: shape (channels, inputs), `bias`: (channels,) or None, `smooth`: (inputs,), fp32."""
        super().__init__()
        rounded, scale = quantised(weight.float() * smooth, -1)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("smooth", smooth)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.accumulator = Accumulator()
        self._again = tuple(again)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """From shape (..., inputs) to (..., channels), in the inputs' dtype."""
        numbers, scale = quantised(inputs.float() / self.smooth, -1)
        rounded, columns = numbers.to(torch.int8), self.weight.t()
        bias = None if self.bias is None else self.bias.float()

        def worth(sums: torch.Tensor) -> torch.Tensor:
            outputs = sums.float() * scale * self.scale
            return outputs if bias is None else outputs + bias

        sums = integer_product(rounded, columns)
        return scaled_back(sums, lambda sums: self.accumulator(sums, rounded, columns), worth, self._again).to(
            inputs.dtype
        )


def quantised(values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers within +-127, and what they are to be multiplied by to be `values` again: the largest size along
    `dim`, which stays as 1, is 127. Both fp32, as `values` are. Where one of them is NaN the scale is, and numbers are
    0."""
    scale = _scale(values, dim)
    return _rounded(values, scale).nan_to_num(0.0), scale


def _scale(values: torch.Tensor, dim: int | tuple[int, int]) -> torch.Tensor:
    scale = values.abs().amax(dim, keepdim=True) / _LARGEST
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _rounded(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.round(values / scale).clamp(-_LARGEST, _LARGEST)


def scaled_back(
    sums: torch.Tensor,
    accumulator: Callable[[torch.Tensor], torch.Tensor],
    worth: Callable[[torch.Tensor], torch.Tensor],
    again: Sequence[Rows],
) -> torch.Tensor:
    """What sums (int32, shape (..., channels)) are `worth`, fp32, after they passed through `accumulator`.

    Each of the groups of channels in `again` is rounded to int8 once more, with the scale, one a token, that its
    outputs would have without a fault in the sums: a faulty one beyond it saturates (ReaLM, DAC'25).
    """
    # Before the sums are struck, which happens in place.
    clean = worth(sums) if again else sums
    scales = [_scale(_group(clean, rows), (-2, -1)) for rows in again]
    outputs = worth(accumulator(sums))
    for rows, scale in zip(again, scales, strict=True):
        group = _group(outputs, rows)
        group.copy_(_rounded(group, scale) * scale)
    return outputs


def _group(values: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A view of some channels, shape (..., channels) to (..., blocks, channels of a block)."""
    blocks = values.view(*values.shape[:-1], -1, rows.period)
    return blocks[..., rows.offset : rows.offset + rows.length]


def integer_product(inputs: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Exact sums of products of int8, in int32: shapes (..., k) and (k, n) to (..., n)."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    count = len(rows)
    if rows.is_cuda:
        missing = max(_LEAST_ROWS, -(-count // _ROW_STEP) * _ROW_STEP) - count
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    return torch._int_mm(rows, columns)[:count].view(*inputs.shape[:-1], columns.shape[1])


@torch.no_grad()
def projections_to_integers(
    module: torch.nn.Module, outputs: Sequence[OutputSite], again: Sequence[str], calibration: Sequence[torch.Tensor]
) -> None:
    """Put `Int8Linear` in the place of the projections of decoder layers, in place.

    `outputs` are the model's; those of the components `again` are quantised again. `calibration` are token ids, shape
    (rows, tokens), whose activations set how much of each input channel's range moves into the weights:
    s = max|x|^0.5 / max|w|^0.5, by channel (SmoothQuant, Xiao et al., ICML 2023, equation 4). Raises InputError where
    nothing can be replaced.
    """
    shares: dict[str, list[OutputSite]] = {}
    for site in outputs:
        if site.layer is not None and site.component in _PROJECTIONS:
            shares.setdefault(site.module, []).append(site)
    chosen = {name: module.get_submodule(name) for name in shares}
    linear = {name: part for name, part in chosen.items() if isinstance(part, torch.nn.Linear | Conv1D)}
    if not linear:
        raise InputError("the model has no projections that could be computed in integers: leave arithmetic out")
    largest: dict[str, torch.Tensor] = {}

    def see(name: str, inputs: torch.Tensor) -> None:
        found = inputs.float().abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], found) if name in largest else found

    def watch(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0])

    hooks = [part.register_forward_pre_hook(watch(name)) for name, part in linear.items()]
    try:
        for ids in calibration:
            module(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    for name, part in linear.items():
        weight = part.weight.T if isinstance(part, Conv1D) else part.weight
        of_weight = weight.float().abs().amax(0)
        smooth = largest[name] ** _MIGRATION / of_weight ** (1 - _MIGRATION)
        usable = smooth.isfinite() & (smooth > 0)
        smooth = torch.where(usable, smooth, torch.ones_like(smooth))
        groups = [site.rows for site in shares[name] if site.component in again]
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, Int8Linear(weight.detach(), part.bias, smooth, groups))
