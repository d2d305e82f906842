"""Draw the faults of a trial: a pure function of (selection, model, seed, index)."""

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.draws import (
    bit_corruption,
    bits_of_word,
    distinct,
    draw_corruption,
    draw_corruptions,
    draw_events,
    draw_pass,
    draw_placements,
    draw_stage,
    draw_token,
    moment_of,
    split_positions,
    weight_trigger_of,
)
from aftershock.faults.fault import (
    ALWAYS,
    ActivationSite,
    CachedSite,
    Entry,
    Fault,
    HeadValueSite,
    Site,
    StoredWordSite,
    Trigger,
    WeightSite,
)
from aftershock.faults.selection import TRANSIENT, Population, Selection, SiteKind
from aftershock.models import CacheSite, HeadSite, OutputSite, ParameterSite, StoredSite, decode
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
    selection's pattern, all at the same moment. With a rate the count is binomial and may be zero, then the set is
    empty. Cost grows with the number of faults, not of values.
    Raises InputError when no stage of the selection can occur.
    """
    random = generator(seed, index, "faults")
    if selection.rate is not None:
        return _by_rate(selection, population.parameters, number_format, decode_passes, random)
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
    # The head's output exists for answer tokens only.
    beside_head = tuple(output for output in made if output.component != "lm_head")
    stages = tuple(stage for stage in selection.stages if stage != "prefill" or beside_head)
    if not stages:
        raise InputError("lm_head's output has no prefill stage: add first_token or decode to stages")
    stage = draw_stage(stages, selection, decode_passes, random)
    outputs = beside_head if stage == "prefill" else made
    faults = []
    for part, struck in draw_events(selection, outputs, random):
        corruptions = draw_corruptions(selection, number_format, len(struck), random)
        trigger = moment_of(stage, selection, decode_passes, random)
        sites = [_activation_site(outputs[part], position) for position in struck.tolist()]
        faults += [Fault(site, corruption, trigger) for site, corruption in zip(sites, corruptions, strict=True)]
    return tuple(faults)


def _in_stored(
    stored: tuple[StoredSite, ...], selection: Selection, decode_passes: int, random: np.random.Generator
) -> tuple[Fault, ...]:
    """Faults in stored words, the chance of each in proportion to the selected bits that it has."""
    bits = sorted(set(selection.bits))
    sizes = {site: [bit for bit in bits or range(site.bits) if bit < site.bits] for site in stored}
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
        key = None if site.part == "head_output" else float(random.random())
        corruptions = draw_corruptions(selection, number_format, len(struck), random)
        for position, corruption in zip(struck.tolist(), corruptions, strict=True):
            head, channel = divmod(position, site.shape[1])
            place = channel if key is None else key
            faults.append(Fault(HeadValueSite(site.part, site.module, head, place), corruption, trigger))
    return tuple(faults)


def _by_rate(
    selection: Selection,
    sites: tuple[ParameterSite, ...],
    number_format: NumberFormat,
    decode_passes: int,
    random: np.random.Generator,
) -> tuple[Fault, ...]:
    """Every selected bit (or value) is struck on its own with probability `rate` (C5.1 of the speed notes)."""
    whole_value = selection.corruption in ("replace", "add")
    bits = np.array(() if whole_value else selection.bit_positions(number_format), dtype=np.int64)
    per_value = 1 if whole_value else len(bits)
    sizes = np.array([site.numel for site in sites], dtype=np.int64)
    ends = np.cumsum(sizes)
    assert selection.rate is not None
    count = int(random.binomial(int(ends[-1]) * per_value, selection.rate))
    if not count:
        return ()
    trigger = weight_trigger_of(selection, decode_passes, random)
    values, bit = np.divmod(np.sort(distinct(random, int(ends[-1]) * per_value, count)), per_value)
    words, begin = np.unique(values, return_index=True)
    named = _weight_sites(sites, *split_positions(words, ends, sizes))
    if whole_value:
        return tuple(Fault(site, draw_corruption(selection, number_format, random), trigger) for site in named)
    return tuple(
        Fault(site, bit_corruption(selection, tuple(bits[struck].tolist())), trigger)
        for site, struck in zip(named, np.split(bit, begin[1:]), strict=True)
    )


def _weight_sites(sites: tuple[ParameterSite, ...], parts: np.ndarray, positions: np.ndarray) -> tuple[Site, ...]:
    named: list[Site | None] = [None] * len(parts)
    for part in np.unique(parts):
        site = sites[part]
        where = np.flatnonzero(parts == part)
        index = np.unravel_index(site.locate(positions[where]), site.stored_shape)
        for number, *element in zip(where.tolist(), *(axis.tolist() for axis in index), strict=True):
            named[number] = WeightSite(site.name, tuple(element))
    return tuple(site for site in named if site is not None)


def _activation_site(site: OutputSite, position: int) -> ActivationSite:
    return ActivationSite(site.module, int(site.rows.locate(np.array(position))))
