"""Draw where events lie, which bits they strike and when: what every kind of site has in common."""

from collections.abc import Sequence

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.corruption import Add, Corruption, Flip, Replace, StuckAt
from aftershock.faults.grammar import parse_trigger
from aftershock.faults.moments import Trigger
from aftershock.faults.selection import LASTING, TRANSIENT, PopulationSite, Selection, StageName
from aftershock.models import FIRST_TOKEN, PREFILL, ExpertSite, StoredSite, decode
from aftershock.numerics import NumberFormat


def draw_events(
    selection: Selection,
    sites: Sequence[PopulationSite],
    random: np.random.Generator,
) -> list[tuple[int, np.ndarray]]:
    """Number of the site of each event, and the flat positions in it that are struck (int64)."""
    pattern = selection.struck_together
    placements_of = [pattern.placements(site.shape) for site in sites]
    parts, placements = draw_placements(selection, sites, placements_of, random)
    return [
        (part, pattern.struck(sites[part].shape, placement))
        for part, placement in zip(parts.tolist(), placements.tolist(), strict=True)
    ]


def draw_placements(
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
        return split_positions(distinct(random, int(ends[-1]), count), ends, sizes)
    if selection.draw == "by_use":
        return _by_use(sites, sizes, count, random)
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
        part, within = split_positions(position, group_ends, sizes[group])
        chosen[int(group[part[0]]), int(within[0])] = None
    drawn = np.array(list(chosen), dtype=np.int64)
    return drawn[:, 0], drawn[:, 1]


def _by_use(
    sites: Sequence[PopulationSite], sizes: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Placements in weights of experts, each in proportion to its expert's use."""
    used = np.array([site.use if isinstance(site, ExpertSite) else 0.0 for site in sites])
    if count > sizes[used > 0].sum():
        raise InputError(f"{count} faults do not fit in the experts that the task's tokens choose: lower count")
    chances = used * sizes
    ends = np.cumsum(chances / chances.sum())
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < count:
        part = min(int(np.searchsorted(ends, random.random(), side="right")), len(ends) - 1)
        chosen[part, int(random.integers(sizes[part]))] = None
    drawn = np.array(list(chosen), dtype=np.int64)
    return drawn[:, 0], drawn[:, 1]


def split_positions(positions: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part that each position falls into, and its place there; `ends` are the running totals of `sizes`."""
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


def draw_corruptions(
    selection: Selection, number_format: NumberFormat, count: int, random: np.random.Generator
) -> Sequence[Corruption]:
    """What happens to each value of an event. A wire that is stuck is one wire: its bits are the same in all."""
    if selection.corruption in ("stuck-at-0", "stuck-at-1"):
        return [draw_corruption(selection, number_format, random)] * count
    return [draw_corruption(selection, number_format, random) for _ in range(count)]


def draw_corruption(selection: Selection, number_format: NumberFormat, random: np.random.Generator) -> Corruption:
    """What happens to one value."""
    if selection.corruption in ("replace", "add"):
        value = selection.value
        if value is None:
            assert selection.uniform is not None
            value = float(random.uniform(*selection.uniform))
            # An accumulator holds whole numbers.
            value = float(round(value)) if "accumulator" in selection.sites else value
        return Replace(value) if selection.corruption == "replace" else Add(value)
    return bit_corruption(selection, bits_of_word(selection, selection.bit_positions(number_format), random))


def bits_of_word(selection: Selection, positions: Sequence[int], random: np.random.Generator) -> tuple[int, ...]:
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


def stored_bits(selection: Selection, site: StoredSite) -> list[int]:
    """The selected bits that the words of a field have."""
    return [bit for bit in sorted(set(selection.bits)) or range(site.bits) if bit < site.bits]


def bit_corruption(selection: Selection, bits: tuple[int, ...]) -> Corruption:
    """The selection's corruption of some bits."""
    if selection.corruption == "flip":
        return Flip(bits)
    return StuckAt(bits, 1 if selection.corruption == "stuck-at-1" else 0)


def draw_stage(
    stages: tuple[StageName, ...], selection: Selection, decode_passes: int, random: np.random.Generator
) -> StageName:
    """One of the stages that can occur. Raises InputError where none can."""
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


def draw_pass(stage: str, selection: Selection, decode_passes: int, random: np.random.Generator) -> int:
    """The number of a pass of a stage."""
    if stage == "decode":
        steps = _steps(selection, decode_passes)
        return decode(steps[random.integers(len(steps))])
    return PREFILL if stage == "prefill" else FIRST_TOKEN


def weight_trigger_of(selection: Selection, decode_passes: int, random: np.random.Generator) -> Trigger:
    """When a weight fault is there."""
    if selection.weight_trigger not in (TRANSIENT, LASTING):
        return parse_trigger(selection.weight_trigger)
    stage = draw_stage(selection.stages, selection, decode_passes, random)
    first = draw_pass(stage, selection, decode_passes, random)
    return Trigger(first, None if selection.weight_trigger == LASTING else first + 1)


def moment_of(stage: str, selection: Selection, decode_passes: int, random: np.random.Generator) -> Trigger:
    """When what is struck is made: a pass and, in prefill, a token."""
    first = draw_pass(stage, selection, decode_passes, random)
    return Trigger(first, first + 1, draw_token(stage, selection, random))


def draw_token(stage: str, selection: Selection, random: np.random.Generator) -> float | None:
    """The share of the prompt before a token of prefill; None in other stages."""
    low, high = selection.tokens
    return low + (high - low) * float(random.random()) if stage == "prefill" else None
