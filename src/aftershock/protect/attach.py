"""Hooks on a model for each protection asked of it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.detect import Bounds, dtype_of_bounds
from aftershock.errors import InputError
from aftershock.models import Int8Linear, LoadedModel, OutputSite, component_map, projections_to_integers
from aftershock.protect.attention import AttentionWatch, Guard
from aftershock.protect.configs import (
    Backup,
    Checksum,
    DualFirstToken,
    Duplication,
    Ecc,
    FiniteScreen,
    FirstTokenBounds,
    FusedChecksum,
    Int8,
    Protection,
    RangeGuard,
    Scrub,
)
from aftershock.protect.error_correcting import CorrectingWords
from aftershock.protect.fused.llama import fuse
from aftershock.protect.guards import FirstTokenHook, Product, RangeHook, RowGuard, TileGuard, TwiceGuard
from aftershock.protect.memory import CopiedWords, ScrubbedWords
from aftershock.protect.passes import Alarm, FirstTokenTwice, Passes, RepeatedPasses
from aftershock.protect.products import AttentionProduct, AttentionSums, LinearProduct, LinearSums
from aftershock.protect.sites import Sites, output_sites, sites_of
from aftershock.protect.tally import Counter, Event, Site, Tally


@dataclass
class Attached:
    """What protections left on a model: the model to use, its sites, counts and copies, and how all is undone."""

    model: LoadedModel
    sites: Sites
    events: list[Event]
    undo: ExitStack
    tallies: list[Counter] = field(default_factory=list)
    copies: list[CopiedWords | CorrectingWords] = field(default_factory=list)
    scrubs: list[ScrubbedWords] = field(default_factory=list)
    products: list[LinearProduct | LinearSums] = field(default_factory=list)
    passes: Passes = field(default_factory=Passes)

    @cached_property
    def alarm(self) -> Alarm:
        """What checks that recover tell. Reading it is free on a CPU, where they act at once."""
        return Alarm(deferred=self.model.device.type != "cpu")

    def tally(self, site: Site, protection: Protection) -> Tally:
        """A new count of what one protection sees at a site."""
        made = Tally(site, type(protection).__name__, self.device(site))
        self.tallies.append(made)
        return made

    def device(self, site: Site) -> torch.device:
        """Where a site's module is; the model's for modules without a tensor."""
        part = self.model.module.get_submodule(site.module)
        return next((one.device for one in chain(part.parameters(), part.buffers())), self.model.device)

    def mend(self) -> bool:
        """Put clean words back from wherever they are kept; whether any were."""
        keepers: tuple[CopiedWords | CorrectingWords | ScrubbedWords, ...] = (*self.copies, *self.scrubs)
        mended = [keeper.mend() for keeper in keepers]
        return any(mended)


@torch.inference_mode(False)  # tensors that are made in it can't be changed outside
def attach(model: LoadedModel, protections: Sequence[Protection], events: list[Event]) -> Attached:
    """Make protections real. Raises InputError, and leaves the model as it was then."""
    if strange := [one for one in protections if not isinstance(one, Protection)]:
        raise InputError(f"{strange[0]!r} is no protection: give `Checksum()` and others of aftershock.protect")
    if len(_of(protections, FusedChecksum)) > 1:
        raise InputError("FusedChecksum is given twice: give one, with the components of both")
    with ExitStack() as undo:
        numbers = [one for one in protections if isinstance(one, Int8)]
        for one in numbers:
            model = _in_integers(model, one, undo)
        attached = Attached(model, sites_of(model), events, undo)
        module = model.module
        if any(isinstance(one, FirstTokenBounds | DualFirstToken) for one in protections):
            undo.callback(module.register_forward_pre_hook(attached.passes.tell_first, with_kwargs=True).remove)
        if attached.alarm.deferred or _of(protections, DualFirstToken):
            undo.callback(module.register_forward_pre_hook(attached.passes.before_pass, with_kwargs=True).remove)
        if attached.alarm.deferred:
            undo.callback(module.register_forward_pre_hook(attached.alarm.clear).remove)
            repeated = RepeatedPasses(attached.passes, attached.alarm, events)
            undo.callback(module.register_forward_hook(repeated.after_pass, with_kwargs=True).remove)
        # Words are put right before a pass reads them, and checks then know who can mend a weight.
        for one in (*_of(protections, Backup), *_of(protections, Ecc), *_of(protections, Scrub)):
            _keep_words(attached, one)
        for protection in protections:
            _guard(attached, protection)
        attached.undo = undo.pop_all()
        return attached


def _of(protections: Sequence[Protection], kind: type[Any]) -> list[Any]:
    return [one for one in protections if isinstance(one, kind)]


def _keep_words(attached: Attached, protection: Backup | Ecc | Scrub) -> None:
    module = attached.model.module
    if isinstance(protection, Backup | Ecc):
        kept: CopiedWords | CorrectingWords = (
            CopiedWords(module, protection.parameters)
            if isinstance(protection, Backup)
            else CorrectingWords(module, protection.parameters, attached.events)
        )
        attached.copies.append(kept)
        attached.tallies.extend(kept.tallies)
        hook = module.register_forward_pre_hook(kept.before_pass)
    else:
        scrubbed = ScrubbedWords(module, protection.every, attached.events)
        attached.scrubs.append(scrubbed)
        hook = module.register_forward_pre_hook(scrubbed.before_pass)
    attached.undo.callback(hook.remove)


def _guard(attached: Attached, protection: Protection) -> None:
    match protection:
        case Checksum() | Duplication():
            _guard_products(attached, protection)
        case FusedChecksum():
            made = fuse(attached.model, protection, attached.sites.linear, attached.undo)
            attached.tallies.extend(made)
        case FiniteScreen():
            largest = torch.finfo(attached.model.dtype).max
            for site in _outputs_of(attached, protection):
                tally, bounds = attached.tally(site, protection), _bounds(attached, site, -largest, largest)
                _hook(attached, site.module, RangeHook(bounds, protection.limit, tally))
        case RangeGuard():
            _guard_ranges(attached, protection)
        case FirstTokenBounds():
            for site in _outputs_of(attached, protection):
                tally, bounds = attached.tally(site, protection), _bounds(attached, site, -torch.inf, torch.inf)
                bounded = FirstTokenHook(bounds, protection.factor, protection.limit, tally, attached.passes)
                _hook(attached, site.module, bounded)
        case DualFirstToken():
            twice = FirstTokenTwice(attached.passes, attached.events)
            hook = attached.model.module.register_forward_hook(twice.after_pass, with_kwargs=True)
            attached.undo.callback(hook.remove)
        case Backup() | Ecc() | Scrub() | Int8():
            return


def _guard_products(attached: Attached, protection: Checksum | Duplication) -> None:
    module = attached.model.module

    def guard(product: Product, site: Site) -> Guard:
        tally = attached.tally(site, protection)
        if isinstance(protection, Duplication):
            return TwiceGuard(product, tally)
        if protection.scheme is not None:
            return TileGuard(product, protection.scheme, protection.array, tally, attached.events)
        return RowGuard(product, protection.action, tally, attached.events, attached.alarm)

    linear = _chosen(attached.sites.linear, protection.components)
    sums = [one for one in attached.sites.sums if _chosen([one.site], protection.components)]
    if isinstance(protection, Checksum) and protection.scheme is not None and linear:
        raise InputError(
            f"{linear[0].module} computes in floating point, and schemes are for products of integers: load the "
            'model with arithmetic = "w8a8", or leave the scheme out'
        )
    for site in linear:
        product = LinearProduct(module.get_submodule(site.module), attached.mend)
        attached.products.append(product)
        _hook(attached, site.module, guard(product, site))
    for one in sums:
        weight = getattr(module.get_submodule(one.site.module), "weight", None)
        if weight is None:
            _hook(attached, one.shown_by, guard(AttentionSums(), one.site))
            continue
        summed = LinearSums(weight, attached.mend)
        attached.products.append(summed)
        _hook(attached, one.shown_by, guard(summed, one.site))
    watched: dict[str, dict[str, Guard]] = {}
    for site in _chosen(attached.sites.attention, protection.components):
        made = AttentionProduct(attached.model.dtype, attached.model.device)
        watched.setdefault(site.module, {})[site.component] = guard(made, site)
    for name, guards in watched.items():
        watch = AttentionWatch(module.get_submodule(name), [guards.get("qk"), guards.get("sv")])
        for handle in watch.register():
            attached.undo.callback(handle.remove)
    if not (linear or sums or watched):
        raise InputError(f"the model has no {', '.join(protection.components)} that can be checked: see the coverage")


def _guard_ranges(attached: Attached, protection: RangeGuard) -> None:
    outputs = output_sites(attached.model)
    for name, bounds in protection.bounds.items():
        if name not in outputs:
            raise InputError(f"bounds are given for {name}, whose output is not known: take those of `observe_bounds`")
        site = outputs[name]
        tally = attached.tally(site, protection)
        _hook(attached, name, RangeHook(_bounds(attached, site, *bounds), protection.limit, tally))


def _outputs_of(attached: Attached, protection: FiniteScreen | FirstTokenBounds) -> list[Site]:
    """The modules that make products, whatever they compute in. Raises InputError where the model has none of them."""
    chosen = _chosen(tuple(output_sites(attached.model).values()), protection.components)
    if not chosen:
        raise InputError(f"no module of the model gives {', '.join(protection.components)}: see the coverage")
    return chosen


def _bounds(attached: Attached, site: Site, lowest: float, highest: float) -> Bounds:
    dtype, device = dtype_of_bounds(attached.model.dtype), attached.device(site)
    return Bounds(*(torch.tensor(one, dtype=dtype, device=device) for one in (lowest, highest)))


def _chosen(sites: Sequence[Site], components: Sequence[str]) -> list[Site]:
    return [site for site in sites if set(site.components) & set(components)]


def _hook(attached: Attached, module: str, guard: Guard) -> None:
    hook = attached.model.module.get_submodule(module).register_forward_hook(guard)
    attached.undo.callback(hook.remove)


def _in_integers(model: LoadedModel, protection: Int8, undo: ExitStack) -> LoadedModel:
    """The model with some projections in integers, until it is undone."""
    chosen = tuple(_outputs(model, protection.components))
    before = {one.module: model.module.get_submodule(one.module) for one in chosen}
    if already := [name for name, part in before.items() if isinstance(part, Int8Linear)]:
        raise InputError(f"{already[0]} computes in integers already: name each component in one Int8, or leave it out")
    if not any(isinstance(part, torch.nn.Linear | Conv1D) for part in before.values()):
        raise InputError(f"no {', '.join(protection.components)} of the model can compute in integers: leave Int8 out")
    ids = [torch.tensor([model.tokenizer(text)["input_ids"]], device=model.device) for text in protection.calibration]
    projections_to_integers(model.module, chosen, (), ids)
    for name, part in before.items():
        parent, _, own = name.rpartition(".")
        undo.callback(setattr, model.module.get_submodule(parent), own, part)
    return replace(model, components=component_map(model.module))


def _outputs(model: LoadedModel, components: Sequence[str]) -> Iterator[OutputSite]:
    return (one for one in model.components.outputs if one.component in components)
