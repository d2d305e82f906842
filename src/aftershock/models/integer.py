"""Projections computed in integers: W8A8, int8 weights times int8 activations, summed in int32."""

from collections.abc import Callable

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.errors import InputError

_MIGRATION = 0.5
"""How much of the activations' range goes into the weights (SmoothQuant, equation 4: alpha)."""

_LEAST_ROWS, _ROW_STEP = 32, 8
"""`torch._int_mm` on CUDA wants more than 16 rows, in steps of 8."""

_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2")


class Int8Linear(torch.nn.Module):
    """A linear map in integers: int8 weights, one scale a channel; int8 activations, one scale a token; int32 sums.

    The sums, shape (rows, tokens, channels), pass through `accumulator`, where a fault in a sum can strike; they are
    exact, so that they depend neither on the shape nor on the kernel. Scaling back is fp32 arithmetic, `smooth` the
    factors by which channels of the input were divided and the weights multiplied.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    smooth: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, smooth: torch.Tensor) -> None:
        """`weight`: shape (channels, inputs), `bias`: (channels,) or None, `smooth`: (inputs,), fp32."""
        super().__init__()
        smoothed = weight.float() * smooth
        scale = _scale(smoothed)
        self.register_buffer("weight", torch.round(smoothed / scale).to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("smooth", smooth)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.accumulator = torch.nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """From shape (..., inputs) to (..., channels), in the inputs' dtype."""
        smoothed = inputs.float() / self.smooth
        scale = _scale(smoothed)
        rounded = torch.round(smoothed / scale).to(torch.int8)
        sums: torch.Tensor = self.accumulator(_integer_product(rounded, self.weight))
        outputs = sums.float() * scale * self.scale
        if self.bias is not None:
            outputs = outputs + self.bias.float()
        return outputs.to(inputs.dtype)


def _scale(values: torch.Tensor) -> torch.Tensor:
    """What the largest size along the last dimension is to be divided by to be 127; 1 for zeros, shape (..., 1)."""
    largest = values.abs().amax(-1, keepdim=True)
    return torch.where(largest == 0, torch.ones_like(largest), largest / 127)


def _integer_product(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Exact sums of products of int8, in int32."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    count = len(rows)
    if rows.is_cuda:
        missing = max(_LEAST_ROWS, -(-count // _ROW_STEP) * _ROW_STEP) - count
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    return torch._int_mm(rows, weight.t())[:count].view(*inputs.shape[:-1], len(weight))


@torch.no_grad()
def to_integers(module: torch.nn.Module, names: dict[str, str], calibration: list[torch.Tensor]) -> None:
    """Put `Int8Linear` in the place of the projections of decoder layers, in place.

    `names` are their paths with their components; `calibration` are token ids, shape (rows, tokens), whose activations
    set how much of each input channel's range moves into the weights: s = max|x|^0.5 / max|w|^0.5, by channel
    (SmoothQuant, Xiao et al., ICML 2023, equation 4). Raises InputError where nothing can be replaced.
    """
    chosen = {name: module.get_submodule(name) for name, part in names.items() if part in _PROJECTIONS}
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
        parent, _, own = name.rpartition(".")
        made = Int8Linear(weight.detach(), part.bias, torch.where(usable, smooth, torch.ones_like(smooth)))
        setattr(module.get_submodule(parent), own, made)
