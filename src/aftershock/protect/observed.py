"""The range that clean outputs take, for range guards."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from aftershock.errors import InputError
from aftershock.models import LoadedModel, output_tensor
from aftershock.protect.configs import PRODUCTS, known_components


@torch.inference_mode()
def observe_bounds(
    model: LoadedModel,
    tokens: Iterable[torch.Tensor],
    components: Sequence[str] = PRODUCTS,
    margin: float = 0.0,
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each module's output over passes on `tokens`, int64 of shape (rows, tokens), by
    module; widened on either side by `margin` times their distance. For `RangeGuard`: what is out of the range that
    clean text gives (Ranger, arXiv 2003.13874).

    Raises InputError where no tokens are given, or clean outputs are not finite.
    """
    known_components(tuple(components), PRODUCTS)
    lowest: dict[str, torch.Tensor] = {}
    highest: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def see(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            low, high = output_tensor(output).aminmax()
            lowest[name] = torch.minimum(lowest.get(name, low), low)
            highest[name] = torch.maximum(highest.get(name, high), high)

        return see

    chosen = {one.module for one in model.components.outputs if one.component in components}
    with ExitStack() as hooks:
        for name in chosen:
            hooks.callback(model.module.get_submodule(name).register_forward_hook(watch(name)).remove)
        for ids in tokens:
            model.module(input_ids=ids.to(model.device), use_cache=False)
    if not lowest:
        raise InputError("no bounds were observed: give some tokens, and components that the model has")
    bounds = {name: (float(lowest[name]), float(highest[name])) for name in lowest}
    for name, (low, high) in bounds.items():
        if not abs(low) + abs(high) < float("inf"):
            raise InputError(f"{name} gives {low} to {high} on clean text, which bounds nothing: leave it out")
    return {name: (low - margin * (high - low), high + margin * (high - low)) for name, (low, high) in bounds.items()}
