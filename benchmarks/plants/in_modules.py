"""Errors in what single modules of a live torch model compute: outputs, inputs, sums, norms, activations, routers.

The same for transformers and for any engine whose modules have Llama's names and return tensors (or tuples that begin
with one). A model is changed in place. Torch alone is needed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.plants.changes import CHANGES
from benchmarks.plants.norms import NORMS
from benchmarks.plants.places import Forward, Layers, Place, modules_at, places, replace_forward, wrap


def silu(values: torch.Tensor) -> torch.Tensor:
    """values * sigmoid(values)."""
    return torch.nn.functional.silu(values)


def gelu(values: torch.Tensor) -> torch.Tensor:
    """The exact one, by the error function."""
    return torch.nn.functional.gelu(values)


def gelu_tanh(values: torch.Tensor) -> torch.Tensor:
    """The approximation by a hyperbolic tangent."""
    return torch.nn.functional.gelu(values, approximate="tanh")


def quick_gelu(values: torch.Tensor) -> torch.Tensor:
    """values * sigmoid(1.702 * values)."""
    return values * torch.sigmoid(1.702 * values)


def relu(values: torch.Tensor) -> torch.Tensor:
    """Nothing below 0."""
    return values.clamp(min=0)


def hard_silu(values: torch.Tensor) -> torch.Tensor:
    """values * a piecewise linear sigmoid."""
    return torch.nn.functional.hardswish(values)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    each.__name__: each for each in (silu, gelu, gelu_tanh, quick_gelu, relu, hard_silu)
}


def change_output(model: Any, point: str, change: str, layers: Layers = "all", **parameters: Any) -> None:
    """What the modules at a point return is changed (`CHANGES`)."""
    changed = partial(CHANGES[change], **parameters)
    for place in places(model, point, layers):
        replace_forward(place.module, partial(_replaced, place, place.module.forward, changed))


def _replaced(
    place: Place, inner: Forward, change: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kw: Any
) -> Any:
    return place.replaced(inner(*args, **kw), change)


def change_input(model: Any, point: str, change: str, layers: Layers = "all", **parameters: Any) -> None:
    """What the modules at a point compute from is changed (`CHANGES`); what enters them stays as it is for others."""
    changed = partial(CHANGES[change], **parameters)
    for module in modules_at(model, point, layers):
        wrap(module, lambda inner: lambda values, *args, **kwargs: inner(changed(values), *args, **kwargs))


def sum_in_parts(model: Any, point: str, parts: int, dtype: str, layers: Layers = "all") -> None:
    """Linear layers add up their products in so many parts, and round the running sum to a format after each: float32
    is another order of additions and no error."""
    for module in modules_at(model, point, layers):
        replace_forward(module, partial(_in_parts, module, parts, getattr(torch, dtype)))


def _in_parts(module: Any, parts: int, dtype: torch.dtype, values: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=dtype)
    for ins, weights in zip(values.chunk(parts, -1), module.weight.chunk(parts, -1), strict=True):
        total = (total.float() + torch.nn.functional.linear(ins.float(), weights.float())).to(dtype)
    made = total.to(values.dtype)
    return made if module.bias is None else made + module.bias


def change_norm(model: Any, point: str, norm: str, layers: Layers = "all", **parameters: Any) -> None:
    """The norms at a point compute something else (`NORMS`)."""
    for module in modules_at(model, point, layers):
        replace_forward(module, partial(_normed, module, partial(NORMS[norm], **parameters)))


def _normed(
    module: Any, norm: Callable[..., torch.Tensor], values: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The norm of the values; or of their sum with the residual stream, and that sum, as vLLM's norms do it."""
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    # Gemma's norms hold the gain less one.
    gain = 1.0 + module.weight.float() if type(module).__name__.startswith("Gemma") else module.weight
    if residual is None:
        return norm(values, gain, eps)
    return norm(values + residual, gain, eps), values + residual


def change_activation(model: Any, name: str, layers: Layers = "all") -> None:
    """Another activation function (`ACTIVATIONS`)."""
    for mlp in modules_at(model, "mlp", layers):
        replace_forward(mlp.act_fn, ACTIVATIONS[name])


def change_product(model: Any, product: str, layers: Layers = "all", **parameters: Any) -> None:
    """What enters `down` is made otherwise from gate and up (`PRODUCTS`)."""
    for mlp in modules_at(model, "mlp", layers):
        replace_forward(mlp, partial(_gated, mlp, partial(PRODUCTS[product], **parameters)))


def _gated(mlp: Any, product: Callable[..., torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = mlp.down_proj(product(mlp.gate_proj(values), mlp.up_proj(values), mlp.act_fn))
    return made


Activation = Callable[[torch.Tensor], torch.Tensor]
"""An activation function."""


def multiplied(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The right one: act(gate) * up."""
    return activation(gate) * up


def swapped(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """act(up) * gate."""
    return activation(up) * gate


def clamped(gate: torch.Tensor, up: torch.Tensor, activation: Activation, limit: float) -> torch.Tensor:
    """Gate held below, up within a limit, as gpt-oss does it."""
    return activation(gate.clamp(max=limit)) * up.clamp(-limit, limit)


def after_product(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """act(gate * up)."""
    return activation(gate * up)


def changed(
    gate: torch.Tensor, up: torch.Tensor, activation: Activation, change: str, **parameters: Any
) -> torch.Tensor:
    """The right product, and then a change of `CHANGES`."""
    return CHANGES[change](activation(gate) * up, **parameters)


PRODUCTS: dict[str, Callable[..., torch.Tensor]] = {
    each.__name__: each for each in (multiplied, swapped, clamped, after_product, changed)
}
