"""Find the part of a model that a fault names. Each function raises InputError when the model has no such place."""

from difflib import get_close_matches
from typing import TypeVar

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.fault import Fault
from aftershock.faults.sites import (
    ActivationSite,
    CachedSite,
    HeadValueSite,
    ScatteredOutput,
    ScatteredWeights,
    StoredWordSite,
    WeightSite,
)
from aftershock.models import BY_CHANNEL, CacheSite, ComponentMap, HeadSite, OutputSite, ParameterSite, StoredSite

T = TypeVar("T", ParameterSite, OutputSite | HeadSite)
Place = ParameterSite | OutputSite | CacheSite | HeadSite | StoredSite
"""A part of a model in which faults lie."""


def parameter_site(fault: Fault, components: ComponentMap) -> ParameterSite:
    """The parameter share that a weight fault lies in. Raises InputError when the model has no such element."""
    site = fault.site
    assert isinstance(site, WeightSite | ScatteredWeights)
    candidates = [part for part in components.parameters if part.name == site.parameter]
    if not candidates:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no parameter {site.parameter}"
            + _suggestion(site.parameter, [part.name for part in components.parameters])
        )
    if isinstance(site, ScatteredWeights):
        return _share(fault, site.parameter, site.component, candidates)
    shape = candidates[0].stored_shape
    if len(site.index) != len(shape) or any(not 0 <= i < n for i, n in zip(site.index, shape, strict=True)):
        raise InputError(
            f"fault '{fault}': {site.parameter} has shape {list(shape)}, so index {list(site.index)} is outside it"
        )
    return next(part for part in candidates if part.rows.contains(np.array(site.index[part.dim])))


def output_site(fault: Fault, components: ComponentMap) -> OutputSite | HeadSite:
    """The output share that an activation fault lies in; of a scattered one also the sums of attention's products.

    Raises InputError when the model has no such channel.
    """
    site = fault.site
    assert isinstance(site, ActivationSite | ScatteredOutput)
    known = (*components.outputs, *components.accumulators)
    found = [part for part in known if part.shown_by == site.module]
    if not found:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no mapped output {site.module}"
            + _suggestion(site.module, [part.shown_by for part in known])
        )
    if isinstance(site, ScatteredOutput):
        return _share(fault, site.module, site.component, found)
    outputs = [part for part in found if isinstance(part, OutputSite)]
    if not outputs:
        raise InputError(
            f"fault '{fault}': {site.module} is that of heads, so its values are named otherwise: docs/faults.md"
        )
    if not 0 <= site.channel < outputs[0].channels:
        raise InputError(f"fault '{fault}': {site.module} has {outputs[0].channels} channels, numbered from 0")
    return next(part for part in outputs if part.rows.contains(np.array(site.channel)))


def _share(fault: Fault, name: str, component: str | None, parts: list[T]) -> T:
    """The one of a tensor's shares that a scattered set lies in."""
    found = [part for part in parts if component in (None, part.component)]
    if len(found) == 1:
        return found[0]
    choice = ", ".join(f"'{name} of {part.component}'" for part in parts)
    raise InputError(f"fault '{fault}': {name} is that of {', '.join(p.component for p in parts)}: write {choice}")


def cache_site(fault: Fault, components: ComponentMap) -> CacheSite:
    """The cached keys or values that a fault lies in. Raises InputError when the model keeps no such word."""
    site = fault.site
    assert isinstance(site, CachedSite)
    found = {part.module: part for part in components.cached if part.part == site.part}
    if site.module not in found:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no attention {site.module}"
            + _suggestion(site.module, list(found))
        )
    part = found[site.module]
    if not (0 <= site.head < part.heads and 0 <= site.channel < part.channels):
        raise InputError(
            f"fault '{fault}': {site.module} keeps {part.heads} heads of {part.channels} channels, numbered from 0"
        )
    return part


def head_site(fault: Fault, components: ComponentMap) -> HeadSite:
    """The heads that a fault lies in. Raises InputError when the model has no such value."""
    site = fault.site
    assert isinstance(site, HeadValueSite)
    attentions = {part.module: part for part in components.heads}
    if site.module not in attentions:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no attention {site.module}"
            + _suggestion(site.module, list(attentions))
        )
    sums = [part for part in components.accumulators if isinstance(part, HeadSite)]
    made = (*components.heads, *sums)
    part = next((part for part in made if (part.module, part.part) == (site.module, site.part)), None)
    if part is None:
        summed = site.part.endswith("accumulator")
        why, how = ("floating-point arithmetic", "arithmetic") if summed else ("a fused attention kernel", "attention")
        value = "w8a8" if summed else "eager"
        raise InputError(
            f"fault '{fault}': {why} makes no {site.part} that could be struck: load the model with {how} = \"{value}\""
        )
    channels = part.channels if site.part in BY_CHANNEL else None
    if not 0 <= site.head < part.heads or (channels is not None and not 0 <= site.place < channels):
        of_channels = "" if channels is None else f" of {channels} channels"
        raise InputError(f"fault '{fault}': {site.module} has {part.heads} heads{of_channels}, numbered from 0")
    return part


def key_of(site: HeadValueSite, seen: range) -> int | None:
    """The key that a score or probability belongs to, of the tokens that its query sees; None where it sees none
    such."""
    if isinstance(site.place, int):
        return site.place if site.place in seen else None
    return seen[int(site.place * len(seen))]


def stored_site(fault: Fault, components: ComponentMap) -> StoredSite:
    """The field of stored words that a fault lies in. Raises InputError when the model has no such word."""
    site = fault.site
    assert isinstance(site, StoredWordSite)
    fields = [part for part in components.stored if part.name == site.parameter]
    if not fields:
        raise InputError(
            f"fault '{fault}': {site.parameter} comes from no packed words: choose a GGUF model, or a storage under "
            "[model]" + _suggestion(site.parameter, sorted({part.name for part in components.stored}))
        )
    found = [part for part in fields if part.field == site.field]
    if not found:
        known = ", ".join(dict.fromkeys(part.field for part in fields))
        raise InputError(f"fault '{fault}': {site.parameter} is stored without a {site.field}: choose from {known}")
    rows, words = sum(part.rows for part in found), found[0].words
    if not (0 <= site.row < rows and 0 <= site.number < words):
        raise InputError(f"fault '{fault}': {rows} rows of {words} such words are stored, numbered from 0")
    # Experts one after the other are no rows of a fused projection.
    fused = len(found) > 1
    return next(part for part in found if not fused or part.parameter.rows.contains(np.array(site.row)))


def site_of(fault: Fault, components: ComponentMap) -> Place:
    """The part of the model that a fault lies in. Raises InputError when the model has no such place."""
    match fault.site:
        case WeightSite() | ScatteredWeights():
            return parameter_site(fault, components)
        case CachedSite():
            return cache_site(fault, components)
        case HeadValueSite():
            return head_site(fault, components)
        case StoredWordSite():
            return stored_site(fault, components)
        case ActivationSite() | ScatteredOutput():
            return output_site(fault, components)


def _suggestion(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else ": see the list in docs/models.md"
