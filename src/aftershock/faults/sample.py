"""Draw the faults of a trial: a pure function of (selection, model, seed, index)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.corruption import Add, Corruption, Drawn, Replace
from aftershock.faults.draws import (
    bit_corruption,
    bits_of_word,
    draw_corruptions,
    draw_events,
    draw_pass,
    draw_placements,
    draw_stage,
    draw_token,
    moment_of,
    stored_bits,
    weight_trigger_of,
)
from aftershock.faults.fault import Fault
from aftershock.faults.moments import ALWAYS, Entry, Trigger
from aftershock.faults.scatter import strikes_any
from aftershock.faults.selection import TRANSIENT, Population, Selection, SiteKind
from aftershock.faults.sites import (
    ActivationSite,
    CachedSite,
    HeadValueSite,
    Scatter,
    ScatteredOutput,
    ScatteredWeights,
    Site,
    StoredWordSite,
    WeightSite,
)
from aftershock.models import (
    BY_CHANNEL,
    FIRST_TOKEN,
    CacheSite,
    HeadSite,
    OutputSite,
    ParameterSite,
    StoredSite,
    decode,
)
from aftershock.numerics import NumberFormat, generator


def sample_faults(
    selection: Selection,
    population: Population,
    number_format: NumberFormat,
    decode_passes: int,
    seed: int,
    index: int,
) -> tuple[Fault, ...]:
    """The fault set of trial `index`.

    `decode_passes` is the number of decode passes that the trial's items can have. An event strikes the values of the
    selection's pattern, all at the same moment. Under a rate a fault is a whole scattered set: one for each tensor in
    which it strikes a word, maybe none, and one for each output. Cost grows with the number of faults, not of values.
    Raises InputError when no stage of the selection can occur.
    """
    random = generator(seed, index, "faults")
    if selection.scatters:
        return _scattered(selection, population, number_format, decode_passes, random)
    kind: SiteKind = selection.sites[random.integers(len(selection.sites))]
    if kind == "weight":
        events = draw_events(selection, population.parameters, random)
        trigger = weight_trigger_of(selection, decode_passes, random)
        parts = np.repeat([part for part, _ in events], [len(struck) for _, struck in events])
        named = iter(_weight_sites(population.parameters, parts, np.concatenate([struck for _, struck in events])))
        return tuple(
            Fault(next(named), corruption, trigger)
            for _, struck in events
            for corruption in draw_corruptions(selection, number_format, len(struck), random)
        )
    if kind == "stored":
        return _in_stored(population.stored, selection, decode_passes, random)
    if kind in ("key", "value"):
        cached = tuple(site for site in population.cached if site.part == kind)
        return _in_cache(cached, selection, number_format, decode_passes, random)
    if kind not in ("activation", "accumulator"):
        heads = tuple(site for site in population.heads if site.part == kind)
        return _in_heads(heads, selection, number_format, decode_passes, random)
    made = population.outputs if kind == "activation" else population.accumulators
    outputs, moment = _moments(made, selection, decode_passes, random)
    faults = []
    for part, struck in draw_events(selection, outputs, random):
        corruptions = draw_corruptions(selection, number_format, len(struck), random)
        trigger = moment()
        sites = _made_sites(outputs[part], struck, random)
        faults += [Fault(site, corruption, trigger) for site, corruption in zip(sites, corruptions, strict=True)]
    return tuple(faults)


def _moments(
    made: tuple[OutputSite | HeadSite, ...], selection: Selection, decode_passes: int, random: np.random.Generator
) -> tuple[tuple[OutputSite | HeadSite, ...], Callable[[], Trigger]]:
    """The outputs that are there when faults strike, and what tells when each event does: at a moment of a stage drawn
    for all of them, or as the selection says."""
    # The head's output exists for answer tokens only.
    beside_head = tuple(output for output in made if output.component != "lm_head")
    lasting = selection.lasting_outputs
    in_prefill = lasting is not None and lasting.end == FIRST_TOKEN
    stages = tuple(stage for stage in selection.stages if stage != "prefill" or beside_head)
    if not stages or (in_prefill and not beside_head):
        raise InputError("lm_head's output has no prefill stage: let faults strike in first_token or decode")
    if lasting is not None:
        return beside_head if in_prefill else made, lambda: lasting
    stage = draw_stage(stages, selection, decode_passes, random)
    return beside_head if stage == "prefill" else made, lambda: moment_of(stage, selection, decode_passes, random)


def _in_stored(
    stored: tuple[StoredSite, ...], selection: Selection, decode_passes: int, random: np.random.Generator
) -> tuple[Fault, ...]:
    """Faults in stored words, the chance of each in proportion to the selected bits that it has."""
    sizes = {site: stored_bits(selection, site) for site in stored}
    sites = tuple(site for site in stored if len(sizes[site]) >= selection.bits_per_word)
    if not sites:
        raise InputError(
            f"no word has {selection.bits_per_word} of the bits selected: lower bits_per_word, or add bits"
        )
    trigger = weight_trigger_of(selection, decode_passes, random)
    counts = [site.rows * site.words * len(sizes[site]) for site in sites]
    faults = []
    parts, placements = draw_placements(selection, sites, counts, random)
    for part, placement in zip(parts.tolist(), placements.tolist(), strict=True):
        site = sites[part]
        row, rest = divmod(placement, site.words * len(sizes[site]))
        number, drawn = divmod(rest, len(sizes[site]))
        struck: tuple[int, ...] = (sizes[site][drawn],)
        if selection.bits_per_word > 1:
            struck = bits_of_word(selection, sizes[site], random)
        channel = int(site.parameter.rows.locate(np.array(row))) if len(site.parameter.shape) == 2 else row
        named = StoredWordSite(site.name, site.field, channel, number)
        faults.append(Fault(named, bit_corruption(selection, struck), trigger))
    return tuple(faults)


def _in_cache(
    cached: tuple[CacheSite, ...],
    selection: Selection,
    number_format: NumberFormat,
    decode_passes: int,
    random: np.random.Generator,
) -> tuple[Fault, ...]:
    """Faults in keys, or in values, of tokens that are drawn as those of activation faults are."""
    stage = draw_stage(selection.stages, selection, decode_passes, random)
    faults = []
    for number, struck in draw_events(selection, cached, random):
        site = cached[number]
        entry = Entry(draw_pass(stage, selection, decode_passes, random), draw_token(stage, selection, random))
        trigger = ALWAYS
        if selection.cache_trigger == TRANSIENT:
            first = int(random.integers(entry.number, decode(decode_passes) + 1))
            trigger = Trigger(first, first + 1)
        corruptions = draw_corruptions(selection, number_format, len(struck), random)
        for position, corruption in zip(struck.tolist(), corruptions, strict=True):
            head, channel = divmod(position, site.channels)
            faults.append(Fault(CachedSite(site.part, site.module, head, channel, entry), corruption, trigger))
    return tuple(faults)


def _in_heads(
    heads: tuple[HeadSite, ...],
    selection: Selection,
    number_format: NumberFormat,
    decode_passes: int,
    random: np.random.Generator,
) -> tuple[Fault, ...]:
    """Faults in what attention heads make of tokens that are drawn as those of activation faults are; of a score or
    probability the key is any that the token sees, each as likely."""
    stage = draw_stage(selection.stages, selection, decode_passes, random)
    faults = []
    for number, struck in draw_events(selection, heads, random):
        site = heads[number]
        trigger = moment_of(stage, selection, decode_passes, random)
        named = _made_sites(site, struck, random)
        corruptions = draw_corruptions(selection, number_format, len(struck), random)
        faults += [Fault(one, corruption, trigger) for one, corruption in zip(named, corruptions, strict=True)]
    return tuple(faults)


def _scattered(
    selection: Selection,
    population: Population,
    number_format: NumberFormat,
    decode_passes: int,
    random: np.random.Generator,
) -> tuple[Fault, ...]:
    """One fault for each tensor or output in which values are struck: every selected bit (or value) with probability
    `rate`, or so many of each pass (C5.1 of the speed notes)."""
    amount = selection.rate if selection.per_pass is None else selection.per_pass
    assert amount is not None
    scatter = Scatter(amount, int(random.integers(2**63)))
    corruption = _scattered_corruption(selection, number_format)
    if selection.sites[0] == "weight":
        trigger = weight_trigger_of(selection, decode_passes, random)
        weights = (
            (Fault(ScatteredWeights(part.name, _fused(part), scatter), corruption, trigger), part)
            for part in population.parameters
        )
        return tuple(fault for fault, part in weights if strikes_any(fault, part))
    made = population.outputs if selection.sites == ("activation",) else population.accumulators
    outputs, moment = _moments(made, selection, decode_passes, random)
    # Of a moment drawn in prefill the whole pass.
    trigger = replace(moment(), token=None)
    return tuple(
        Fault(
            ScatteredOutput(part.shown_by, _fused(part) if isinstance(part, OutputSite) else None, scatter),
            corruption,
            trigger,
        )
        for part in outputs
    )


def _fused(part: ParameterSite | OutputSite) -> str | None:
    """The component, where others share the tensor or output."""
    whole = part.stored_shape if isinstance(part, ParameterSite) else (part.channels,)
    return None if part.shape == whole else part.component


def _scattered_corruption(selection: Selection, number_format: NumberFormat) -> Corruption:
    if selection.corruption in ("replace", "add"):
        if selection.uniform is not None:
            return Drawn("replace" if selection.corruption == "replace" else "add", *selection.uniform)
        assert selection.value is not None
        return Replace(selection.value) if selection.corruption == "replace" else Add(selection.value)
    return bit_corruption(selection, selection.bit_positions(number_format))


def _weight_sites(sites: tuple[ParameterSite, ...], parts: np.ndarray, positions: np.ndarray) -> tuple[Site, ...]:
    named: list[Site | None] = [None] * len(parts)
    for part in np.unique(parts):
        site = sites[part]
        where = np.flatnonzero(parts == part)
        index = np.unravel_index(site.locate(positions[where]), site.stored_shape)
        for number, *element in zip(where.tolist(), *(axis.tolist() for axis in index), strict=True):
            named[number] = WeightSite(site.name, tuple(element))
    return tuple(site for site in named if site is not None)


def _made_sites(site: OutputSite | HeadSite, struck: np.ndarray, random: np.random.Generator) -> list[Site]:
    """Values that are made for a token; those that are made for a key of it, for one of the keys that it sees."""
    if isinstance(site, OutputSite):
        return [ActivationSite(site.module, int(site.rows.locate(position))) for position in struck]
    key = None if site.part in BY_CHANNEL else float(random.random())
    heads, channels = np.divmod(struck, site.shape[1])
    return [
        HeadValueSite(site.part, site.module, head, channel if key is None else key)
        for head, channel in zip(heads.tolist(), channels.tolist(), strict=True)
    ]
