"""Which products of a model can be checked, and which can't and why."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.models import HeadSite, LoadedModel
from aftershock.protect.configs import PRODUCTS
from aftershock.protect.tally import Site

LINEAR = (torch.nn.Linear, Conv1D)


@dataclass(frozen=True)
class Coverage:
    """One product of a model: how it is protected, by the names of protections; none where `reason` tells why it can't
    be, or where nothing was asked for it."""

    site: Site
    protections: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Sites:
    """The products of a model by what computes them: `linear` modules in floating point, `sums` in integers (modules
    that show accumulators), products of `attention` in floating point, and those that are `unsupported`, with why."""

    linear: tuple[Site, ...]
    sums: tuple[Site, ...]
    attention: tuple[Site, ...]
    unsupported: tuple[tuple[Site, str], ...]

    @property
    def all(self) -> tuple[Site, ...]:
        """Every product that can be checked."""
        return self.linear + self.sums + self.attention


def sites_of(model: LoadedModel) -> Sites:
    """The products of a model. `linear` sites name the linear module, `sums` the module of the accumulators, and
    `attention` (qk and sv, which run in one module each layer) the attention."""
    shared: dict[str, list[str]] = defaultdict(list)
    layers: dict[str, int | None] = {}
    for output in model.components.outputs:
        if set(output.component.split("+")) & set(PRODUCTS):
            shared[output.module].append(output.component)
            layers[output.module] = output.layer
    linear, sums, unsupported = [], [], []
    summed = {one.shown_by: one for one in model.components.accumulators}
    for module, components in shared.items():
        site = Site(module, "+".join(dict.fromkeys(components)), layers[module])
        part = model.module.get_submodule(module)
        if isinstance(part, LINEAR):
            linear.append(site)
        elif f"{module}.accumulator" in summed:
            sums.append(Site(f"{module}.accumulator", site.component, site.layer))
        else:
            unsupported.append((site, f"{type(part).__name__} is no linear map with one weight"))
    attention = []
    for cached in {one.module: one for one in model.components.cached}.values():
        for component in ("qk", "sv"):
            shown = next(
                (
                    one.shown_by
                    for one in model.components.accumulators
                    if isinstance(one, HeadSite) and one.module == cached.module and one.component == component
                ),
                None,
            )
            site = Site(cached.module if shown is None else shown, component, cached.layer)
            if shown is not None:
                sums.append(site)
            elif model.attention == "eager":
                attention.append(site)
            else:
                unsupported.append((site, "a fused kernel makes it: load the model with eager attention"))
    return Sites(tuple(linear), tuple(sums), tuple(attention), tuple(unsupported))
