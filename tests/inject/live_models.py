"""Tiny models to strike, and ways to look at their bits while they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aftershock.models import Block, LoadedModel, OutputSite, align, output_tensor
from aftershock.numerics import words
from tiny_models import tiny_loaded

CONTEXTS = ((5, 6, 7, 8, 9), (10, 11), (12,), (13, 14, 15))
ANSWERS = ((20, 21, 22), (23,), (24, 25), ())


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A tiny model that tests share, since each leaves it as it was."""
    return tiny_loaded(family, dtype)


def block_of(model: LoadedModel, answers: tuple[tuple[int, ...], ...] = ANSWERS) -> Block:
    """Four prompts of different lengths and their answers."""
    return align(CONTEXTS, answers, model.device)


def all_words(model: LoadedModel) -> dict[str, torch.Tensor]:
    """A copy of every parameter's words."""
    return {name: words(parameter.detach()).clone() for name, parameter in model.module.named_parameters()}


def same_words(model: LoadedModel, before: dict[str, torch.Tensor]) -> bool:
    """Whether every parameter holds the words it held before."""
    return all(torch.equal(words(p.detach()), before[name]) for name, p in model.module.named_parameters())


def hooked(model: LoadedModel) -> dict[str, int]:
    """Modules that have hooks of any kind, and how many."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    counts = {name: sum(len(getattr(module, kind)) for kind in kinds) for name, module in model.module.named_modules()}
    return {name: count for name, count in counts.items() if count}


def by_token(site: OutputSite, output: Any, rows: int) -> torch.Tensor:
    """Words of an output, copied, as (row, column, channel) whatever the site's layout."""
    found = words(output_tensor(output)).clone()
    if site.layout == "nc":
        return found.reshape(rows, -1, found.shape[-1])
    if site.layout == "bhtc":
        found = found.transpose(1, 2)
    return found.flatten(2)


@contextmanager
def captured(model: LoadedModel, sites: list[OutputSite], rows: int) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Outputs of modules, call by call. Entered after an injection, it sees what the faults left."""
    outputs: dict[str, list[torch.Tensor]] = {site.module: [] for site in sites}
    handles = [
        model.module.get_submodule(site.module).register_forward_hook(
            lambda module, inputs, output, site=site: outputs[site.module].append(by_token(site, output, rows))
        )
        for site in {site.module: site for site in sites}.values()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of new tensors that operations return; views of their inputs cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t)}
        for tensor in torch.utils._pytree.tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.total += tensor.nbytes
        return result
