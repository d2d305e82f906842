"""Which branch of which layer the loss would rather do without: residual-path scaling.

In h = x + alpha F(x) a healthy branch F has its least loss near alpha = 1. Where the loss falls as a branch is damped,
something in that branch is wrong (after BitFlipScope, Karamat et al., HOST 2026).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch

from aftershock.locate.by_text.text_loss import TextLoss
from aftershock.models import LoadedModel, OutputSite, output_tensor

BranchName = Literal["attention", "mlp"]
GRID = (0.0, 0.5)
"""Scales that branches are tried at; the one with the least loss is tried again at steps of `FINE`."""

FINE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class Branch:
    """What is added to the residual path: the output of `module`, in a layer."""

    layer: int
    name: BranchName
    module: str

    def __str__(self) -> str:
        return f"layer {self.layer} {self.name}"


@dataclass(frozen=True)
class Damped:
    """A branch, the scale at which the loss is least, and how far it falls there in nats a token (0 at scale 1)."""

    branch: Branch
    alpha: float
    gain: float


def branches(model: LoadedModel) -> tuple[Branch, ...]:
    """The two branches of every decoder layer, attention first.

    A branch ends with the norm behind it where the architecture has one there (Gemma 2 and 3).
    """
    found: list[Branch] = []
    inner = [site for site in model.components.outputs if site.layer is not None and site.component != "residual"]
    for layer, group in groupby(sorted(inner, key=lambda site: int(site.layer or 0)), key=lambda site: site.layer):
        sites = list(group)
        assert layer is not None
        after_o = 1 + max(place for place, site in enumerate(sites) if site.component == "o")
        norms = [site.component == "norm" for site in sites]
        ends_in_norm = norms[-1]
        attention = sites[after_o] if ends_in_norm and norms[after_o] else sites[after_o - 1]
        found += [Branch(layer, "attention", attention.module), Branch(layer, "mlp", _mlp_end(sites[after_o:]))]
    return tuple(found)


def _mlp_end(sites: Sequence[OutputSite]) -> str:
    """The last module of a layer; of experts all together."""
    return re.sub(r"\.(experts|shared_expert\w*)$", "", sites[-1].module)


@contextmanager
def scaled(model: LoadedModel, branch: Branch, alpha: float) -> Iterator[None]:
    """While open, the branch counts alpha times; 0 leaves it out, whatever it holds (0 x NaN would be NaN)."""

    def hook(_module: torch.nn.Module, _arguments: Any, output: Any) -> Any:
        tensor = output_tensor(output)
        replaced = torch.zeros_like(tensor) if alpha == 0 else tensor * alpha
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    handle = model.module.get_submodule(branch.module).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def profile(model: LoadedModel, text: TextLoss, base: torch.Tensor) -> tuple[Damped, ...]:
    """How far the loss falls when each branch is left out or halved: one entry a branch, the largest fall first.

    `base` are the losses of `text.refresh()`. Costs about as many passes as there are layers for each scale of `GRID`.
    """
    found = []
    for branch in branches(model):
        best = Damped(branch, 1.0, 0.0)
        for alpha in GRID:
            best = _better(model, text, base, best, alpha)
        found.append(best)
    return tuple(sorted(found, key=lambda one: -one.gain))


def least(model: LoadedModel, text: TextLoss, base: torch.Tensor, branch: Branch) -> Damped:
    """The scale of `FINE` at which the loss is least."""
    best = Damped(branch, 1.0, 0.0)
    for alpha in FINE:
        best = _better(model, text, base, best, alpha)
    return best


def _better(model: LoadedModel, text: TextLoss, base: torch.Tensor, best: Damped, alpha: float) -> Damped:
    with scaled(model, best.branch, alpha):
        gain = float((base - text.after_change(best.branch.layer)).mean())
    return Damped(best.branch, alpha, gain) if gain > best.gain else best
