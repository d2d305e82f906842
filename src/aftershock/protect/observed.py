"""The range that clean outputs take, for range guards."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from aftershock.detect import Bounds, bounds_of
from aftershock.errors import InputError
from aftershock.models import LoadedModel, output_tensor
from aftershock.protect.configs import PRODUCTS
from aftershock.protect.given import known_components


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
    known_components(components, PRODUCTS)
    found: dict[str, Bounds] = {}

    def watch(name: str) -> Callable[..., None]:
        def see(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            own = bounds_of(output_tensor(output))
            found[name] = found[name].joined(own) if name in found else own

        return see

    chosen = {one.module for one in model.components.outputs if one.component in components}
    with ExitStack() as hooks:
        for name in chosen:
            hooks.callback(model.module.get_submodule(name).register_forward_hook(watch(name)).remove)
        for ids in tokens:
            if ids.ndim != 2:
                raise InputError(f"tokens have shape {tuple(ids.shape)}: give them as (rows, tokens)")
            model.module(input_ids=ids.to(model.device), use_cache=False)
    if not found:
        raise InputError("no bounds were observed: give some tokens, and components that the model has")
    bounds = {name: (float(own.lowest), float(own.highest)) for name, own in found.items()}
    for name, (low, high) in bounds.items():
        if not low <= high:
            raise InputError(f"{name} gives no finite value on clean text: leave it out")
    return widened(bounds, margin)


def widened(bounds: Mapping[str, tuple[float, float]], margin: float) -> dict[str, tuple[float, float]]:
    """Bounds, by module, further out on either side by `margin` times their distance."""
    return {name: (low - margin * (high - low), high + margin * (high - low)) for name, (low, high) in bounds.items()}
