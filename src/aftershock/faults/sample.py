"""Draw the faults of a trial: a pure function of (selection, model, seed, index)."""

from collections.abc import Sequence

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.fault import (
    ALWAYS,
    ActivationSite,
    Add,
    CachedSite,
    Corruption,
    Entry,
    Fault,
    Flip,
    HeadValueSite,
    Replace,
    Site,
    StoredWordSite,
    StuckAt,
    Trigger,
    WeightSite,
)
from aftershock.faults.grammar import parse_trigger
from aftershock.faults.selection import TRANSIENT, Population, PopulationSite, Selection, SiteKind, StageName
from aftershock.models import FIRST_TOKEN, PREFILL, CacheSite, HeadSite, OutputSite, ParameterSite, StoredSite, decode
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
        events = _draw_events(selection, population.parameters, random)
        trigger = _weight_trigger(selection, decode_passes, random)
        parts = np.repeat([part for part, _ in events], [len(struck) for _, struck in events])
        named = iter(_weight_sites(population.parameters, parts, np.concatenate([struck for _, struck in events])))
        return tuple(
            Fault(next(named), corruption, trigger)
            for _, struck in events
            for corruption in _corruptions(selection, number_format, len(struck), random)
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
    stage = _stage(stages, selection, decode_passes, random)
    outputs = beside_head if stage == "prefill" else made
    faults = []
    for part, struck in _draw_events(selection, outputs, random):
        corruptions = _corruptions(selection, number_format, len(struck), random)
        trigger = _activation_trigger(stage, selection, decode_passes, random)
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
    trigger = _weight_trigger(selection, decode_passes, random)
    counts = [site.rows * site.words * len(sizes[site]) for site in sites]
    faults = []
    parts, placements = _draw_placements(selection, sites, counts, random)
    for part, placement in zip(parts.tolist(), placements.tolist(), strict=True):
        site = sites[part]
        row, rest = divmod(placement, site.words * len(sizes[site]))
        number, drawn = divmod(rest, len(sizes[site]))
        struck: tuple[int, ...] = (sizes[site][drawn],)
        if selection.bits_per_word > 1:
            struck = _bits_of_word(selection, sizes[site], random)
        channel = int(site.parameter.rows.locate(np.array(row))) if len(site.parameter.shape) == 2 else row
        named = StoredWordSite(site.name, site.field, channel, number)
        faults.append(Fault(named, _bit_corruption(selection, struck), trigger))
    return tuple(faults)


def _in_cache(
    cached: tuple[CacheSite, ...],
    selection: Selection,
    number_format: NumberFormat,
    decode_passes: int,
    random: np.random.Generator,
) -> tuple[Fault, ...]:
    """Faults in keys, or in values, of tokens that are drawn as those of activation faults are."""
    stage = _stage(selection.stages, selection, decode_passes, random)
    faults = []
    for number, struck in _draw_events(selection, cached, random):
        site = cached[number]
        entry = Entry(_pass(stage, selection, decode_passes, random), _token(stage, selection, random))
        trigger = ALWAYS
        if selection.cache_trigger == TRANSIENT:
            first = int(random.integers(entry.number, decode(decode_passes) + 1))
            trigger = Trigger(first, first + 1)
        corruptions = _corruptions(selection, number_format, len(struck), random)
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
    stage = _stage(selection.stages, selection, decode_passes, random)
    faults = []
    for number, struck in _draw_events(selection, heads, random):
        site = heads[number]
        trigger = _activation_trigger(stage, selection, decode_passes, random)
        key = None if site.part == "head_output" else float(random.random())
        corruptions = _corruptions(selection, number_format, len(struck), random)
        for position, corruption in zip(struck.tolist(), corruptions, strict=True):
            head, channel = divmod(position, site.shape[1])
            place = channel if key is None else key
            faults.append(Fault(HeadValueSite(site.part, site.module, head, place), corruption, trigger))
    return tuple(faults)


def _draw_events(
    selection: Selection,
    sites: Sequence[PopulationSite],
    random: np.random.Generator,
) -> list[tuple[int, np.ndarray]]:
    """Number of the site of each event, and the flat positions in it that are struck (int64)."""
    pattern = selection.struck_together
    placements_of = [pattern.placements(site.shape) for site in sites]
    parts, placements = _draw_placements(selection, sites, placements_of, random)
    return [
        (part, pattern.struck(sites[part].shape, placement))
        for part, placement in zip(parts.tolist(), placements.tolist(), strict=True)
    ]


def _draw_placements(
    selection: Selection,
    sites: Sequence[PopulationSite],
    placements: Sequence[int],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """As many distinct ones as there are events, of so many of each site: number of the site, and placement in it
    (int64 arrays)."""
    count = selection.count
    sizes = np.array(placements, dtype=np.int64)
    ends = np.cumsum(sizes)
    if count > ends[-1]:
        raise InputError(f"{count} faults do not fit in the {ends[-1]} values selected: lower count")
    if selection.draw == "uniform":
        return _split(distinct(random, int(ends[-1]), count), ends, sizes)
    groups: dict[object, list[int]] = {}
    for number, site in enumerate(sites):
        tensor = site.parameter if isinstance(site, StoredSite) else site
        groups.setdefault(site.component if selection.draw == "by_component" else tensor, []).append(number)
    members = [np.array(group) for group in groups.values()]
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < count:
        group = members[random.integers(len(members))]
        group_ends = np.cumsum(sizes[group])
        position = random.integers(group_ends[-1], size=1)
        part, within = _split(position, group_ends, sizes[group])
        chosen[int(group[part[0]]), int(within[0])] = None
    drawn = np.array(list(chosen), dtype=np.int64)
    return drawn[:, 0], drawn[:, 1]


def _split(positions: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    part = np.searchsorted(ends, positions, side="right")
    return part, positions - (ends - sizes)[part]


def distinct(random: np.random.Generator, population: int, count: int) -> np.ndarray:
    """`count` different integers below `population`, every set equally likely, in random order (int64).

    Memory and time grow with `count` alone: draw, drop repeats, draw the missing ones. The first `count`
    different values of a stream of independent draws are a uniform sample without replacement.
    """
    if count * 2 > population:
        return random.permutation(population)[:count]
    drawn = random.integers(population, size=count)
    while True:
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        if len(drawn) == count:
            return drawn
        drawn = np.concatenate([drawn, random.integers(population, size=count - len(drawn))])


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
    trigger = _weight_trigger(selection, decode_passes, random)
    values, bit = np.divmod(np.sort(distinct(random, int(ends[-1]) * per_value, count)), per_value)
    words, begin = np.unique(values, return_index=True)
    named = _weight_sites(sites, *_split(words, ends, sizes))
    if whole_value:
        return tuple(Fault(site, _corruption(selection, number_format, random), trigger) for site in named)
    return tuple(
        Fault(site, _bit_corruption(selection, tuple(bits[struck].tolist())), trigger)
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


def _corruptions(
    selection: Selection, number_format: NumberFormat, count: int, random: np.random.Generator
) -> Sequence[Corruption]:
    """What happens to each value of an event. A wire that is stuck is one wire: its bits are the same in all."""
    if selection.corruption in ("stuck-at-0", "stuck-at-1"):
        return [_corruption(selection, number_format, random)] * count
    return [_corruption(selection, number_format, random) for _ in range(count)]


def _corruption(selection: Selection, number_format: NumberFormat, random: np.random.Generator) -> Corruption:
    if selection.corruption in ("replace", "add"):
        value = selection.value
        if value is None:
            assert selection.uniform is not None
            value = float(random.uniform(*selection.uniform))
            # An accumulator holds whole numbers.
            value = float(round(value)) if "accumulator" in selection.sites else value
        return Replace(value) if selection.corruption == "replace" else Add(value)
    return _bit_corruption(selection, _bits_of_word(selection, selection.bit_positions(number_format), random))


def _bits_of_word(selection: Selection, positions: Sequence[int], random: np.random.Generator) -> tuple[int, ...]:
    """As many different bits of a word as the selection wants, out of some."""
    if selection.bits_per_word > len(positions):
        raise InputError(
            f"bits_per_word = {selection.bits_per_word}, but only {len(positions)} bits are selected: lower it"
        )
    if selection.bit_pattern == "any":
        chosen = random.choice(positions, size=selection.bits_per_word, replace=False)
        return tuple(sorted(chosen.tolist()))
    runs = [range(low, low + selection.bits_per_word) for low in positions]
    inside = [run for run in runs if set(run) <= set(positions)]
    if not inside:
        raise InputError(f"no {selection.bits_per_word} adjacent bits are selected: lower bits_per_word or add bits")
    return tuple(inside[random.integers(len(inside))])


def _bit_corruption(selection: Selection, bits: tuple[int, ...]) -> Corruption:
    if selection.corruption == "flip":
        return Flip(bits)
    return StuckAt(bits, 1 if selection.corruption == "stuck-at-1" else 0)


def _stage(
    stages: tuple[StageName, ...], selection: Selection, decode_passes: int, random: np.random.Generator
) -> StageName:
    steps = _steps(selection, decode_passes)
    possible = [stage for stage in stages if stage != "decode" or steps]
    if not possible:
        raise InputError(
            "faults are to strike in decode only, but the task's answers have "
            f"{decode_passes} decode passes: raise max_new_tokens or add another stage"
        )
    return possible[random.integers(len(possible))]


def _steps(selection: Selection, decode_passes: int) -> range:
    low, high = selection.decode_steps or (1, decode_passes)
    return range(low, min(high, decode_passes) + 1)


def _pass(stage: str, selection: Selection, decode_passes: int, random: np.random.Generator) -> int:
    if stage == "decode":
        steps = _steps(selection, decode_passes)
        return decode(steps[random.integers(len(steps))])
    return PREFILL if stage == "prefill" else FIRST_TOKEN


def _weight_trigger(selection: Selection, decode_passes: int, random: np.random.Generator) -> Trigger:
    if selection.weight_trigger != TRANSIENT:
        return parse_trigger(selection.weight_trigger)
    stage = _stage(selection.stages, selection, decode_passes, random)
    first = _pass(stage, selection, decode_passes, random)
    return Trigger(first, first + 1)


def _activation_trigger(stage: str, selection: Selection, decode_passes: int, random: np.random.Generator) -> Trigger:
    first = _pass(stage, selection, decode_passes, random)
    return Trigger(first, first + 1, _token(stage, selection, random))


def _token(stage: str, selection: Selection, random: np.random.Generator) -> float | None:
    low, high = selection.tokens
    return low + (high - low) * float(random.random()) if stage == "prefill" else None
