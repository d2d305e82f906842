"""Hooks on the accumulators of one component: what happens to its int32 sums as they pass by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import torch

from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.protect.sites import sites_of

Change = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From the call's number, sums, left and right operand to the sums to go on with."""


def accumulators(model: LoadedModel, component: str) -> tuple[str, ...]:
    """Names of the modules that a component's int32 sums pass through, by layer.

    Raises InputError where it has none, and where it shares them with other components.
    """
    own = tuple(one for one in sites_of(model).sums if component in one.site.components)
    if not own:
        raise InputError(f'{component} has no int32 sums in {model.spec}: load it with arithmetic = "w8a8"')
    if any(len(one.site.components) > 1 for one in own):
        raise InputError(f"{component} shares its sums with other components in {model.spec}: take another model")
    return tuple(one.shown_by for one in own)


@contextmanager
def changed_sums(model: LoadedModel, component: str, change: Change) -> Iterator[None]:
    """While open, all int32 sums of a component are what `change` makes of them. Calls are counted: layer after layer,
    pass after pass."""
    calls = count()

    def hook(_: torch.nn.Module, operands: tuple[torch.Tensor, ...], sums: torch.Tensor) -> torch.Tensor:
        return change(next(calls), sums, operands[1], operands[2])

    handles = [model.module.get_submodule(name).register_forward_hook(hook) for name in accumulators(model, component)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
