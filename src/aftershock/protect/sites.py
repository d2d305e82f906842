"""Which products of a model can be checked, and which can't and why."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.models import HeadSite, LoadedModel, OutputSite
from aftershock.protect.configs import PRODUCTS
from aftershock.protect.tally import Site

LINEAR = (torch.nn.Linear, Conv1D)


@dataclass(frozen=True)
class Coverage:
    """One product of a model: how it is protected, by the names of the protections that look at it or at its output
    (none where nothing was asked for it; those of parameters and of whole passes are not told apart by product), and
    the `reason` why its rows can't be checked, if they can't."""

    site: Site
    protections: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Summed:
    """A product of integers: its site, and the module that its int32 sums pass through."""

    site: Site
    shown_by: str


@dataclass(frozen=True)
class Sites:
    """The products of a model by what computes them: `linear` modules in floating point, `sums` in integers, products
    of `attention` in floating point, and those that are `unsupported`, with why."""

    linear: tuple[Site, ...]
    sums: tuple[Summed, ...]
    attention: tuple[Site, ...]
    unsupported: tuple[tuple[Site, str], ...]

    @property
    def all(self) -> tuple[Site, ...]:
        """Every product that can be checked."""
        return (*self.linear, *(one.site for one in self.sums), *self.attention)


def output_sites(model: LoadedModel) -> dict[str, Site]:
    """What each module makes whose output is known, by module: one site for all components that share it."""
    shared: dict[str, list[OutputSite]] = defaultdict(list)
    for one in model.components.outputs:
        shared[one.module].append(one)
    return {
        module: Site(module, "+".join(dict.fromkeys(one.component for one in ones)), ones[0].layer)
        for module, ones in shared.items()
    }


def sites_of(model: LoadedModel) -> Sites:
    """The products of a model. Sites name the module that computes: of `attention` (qk and sv, which run in one module
    each layer) the attention."""
    linear, sums, attention, unsupported = [], [], [], []
    shown = {one.shown_by for one in model.components.accumulators}
    for module, site in output_sites(model).items():
        if not set(site.components) & set(PRODUCTS):
            continue
        part = model.module.get_submodule(module)
        if isinstance(part, LINEAR):
            linear.append(site)
        elif (accumulator := f"{module}.accumulator") in shown:
            sums.append(Summed(site, accumulator))
        else:
            unsupported.append((site, f"{type(part).__name__} is no linear map with one weight"))
    heads = {
        (one.module, one.component): one.shown_by for one in model.components.accumulators if isinstance(one, HeadSite)
    }
    for module, layer in {one.module: one.layer for one in model.components.cached}.items():
        for component in ("qk", "sv"):
            site = Site(module, component, layer)
            if (module, component) in heads:
                sums.append(Summed(site, heads[module, component]))
            elif model.attention == "eager":
                attention.append(site)
            else:
                unsupported.append((site, "a fused kernel makes it: load the model with eager attention"))
    return Sites(tuple(linear), tuple(sums), tuple(attention), tuple(unsupported))
