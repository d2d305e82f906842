"""Cut the values of a selection by component and bits: parts whose chances are known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from aftershock.faults.draws import stored_bits
from aftershock.faults.resolve import accumulator_bit_class
from aftershock.faults.selection import PopulationSite, Selection
from aftershock.models import StoredSite
from aftershock.numerics import NumberFormat

StratumKey = Literal["site", "component", "bit_class", "bit", "stage"]
_BitLabels = dict[StratumKey, str]


@dataclass(frozen=True)
class Part:
    """Sites of one component, some bits of their words (none: whole values), and the chance of a draw to be there."""

    sites: tuple[PopulationSite, ...]
    labels: _BitLabels
    bits: tuple[int, ...]
    chance: float


def parts_of(
    selection: Selection, sites: Sequence[PopulationSite], number_format: NumberFormat, by: tuple[StratumKey, ...]
) -> Iterator[Part]:
    """The parts of sites of one kind, told apart by component and as far as `by` says by bits; their chances sum to 1.

    A selection narrowed to the sites and bits of a part draws what the whole one draws, given the part.
    """
    stored = [site for site in sites if isinstance(site, StoredSite)]
    return _stored_parts(selection, stored, by) if stored else _parts(selection, sites, number_format, by)


def _parts(
    selection: Selection, sites: Sequence[PopulationSite], number_format: NumberFormat, by: tuple[StratumKey, ...]
) -> Iterator[Part]:
    """Words of one width: which of them is struck and in which bits are drawn apart."""
    bits = list(_bit_groups(selection, number_format, by))
    for component, chance in _component_chances(selection, sites):
        own = tuple(site for site in sites if site.component == component)
        for labels, positions, bit_chance in bits:
            yield Part(own, labels, positions, chance * bit_chance)


def _stored_parts(selection: Selection, sites: Sequence[StoredSite], by: tuple[StratumKey, ...]) -> Iterator[Part]:
    """Stored words: a bit is drawn out of all that a tensor, or a component, has in its fields.

    A part holds words of one kind (field, bits, number format), so that its bits are the same in all of them; where
    tensors are drawn first it is one tensor's, since its share of bits differs from another's.
    """
    groups: dict[object, list[StoredSite]] = {}
    for site in sites:
        if stored_bits(selection, site):
            groups.setdefault(site.parameter if selection.draw == "by_tensor" else site.component, []).append(site)
    sizes = {key: _size(selection, members) for key, members in groups.items()}
    for key, members in groups.items():
        drawn_from = sum(sizes.values()) if selection.draw == "uniform" else sizes[key] * len(groups)
        kinds: dict[tuple[object, ...], list[StoredSite]] = {}
        for site in members:
            kinds.setdefault((site.field, site.bits, site.number), []).append(site)
        for alike in kinds.values():
            bits = stored_bits(selection, alike[0])
            labelled: dict[tuple[str, str], list[int]] = {}
            for bit in bits:
                labelled.setdefault(_stored_labels(alike[0], bit, by), []).append(bit)
            chance = _size(selection, alike) / drawn_from / len(bits)
            for (bit_class, name), own in labelled.items():
                yield Part(tuple(alike), {"bit_class": bit_class, "bit": name}, tuple(own), chance * len(own))


def _size(selection: Selection, sites: Sequence[StoredSite]) -> int:
    """Number of the bits selected."""
    return sum(site.rows * site.words * len(stored_bits(selection, site)) for site in sites)


def _stored_labels(site: StoredSite, bit: int, by: tuple[StratumKey, ...]) -> tuple[str, str]:
    """Class and name of a bit, as far as `by` tells them apart."""
    told = "bit" in by or "bit_class" in by
    return site.bit_class(bit) if told else "any", f"{site.field} bit {bit}" if "bit" in by else "any"


def _bit_groups(
    selection: Selection, number_format: NumberFormat, by: tuple[StratumKey, ...]
) -> Iterator[tuple[_BitLabels, tuple[int, ...], float]]:
    """Labels, positions and chance of each group of bits that `by` tells apart; no positions for whole values."""
    if selection.corruption in ("replace", "add"):
        yield {"bit_class": "value", "bit": "value"}, (), 1.0
        return
    positions = selection.bit_positions(number_format)
    if not {"bit", "bit_class"} & set(by):
        yield {"bit_class": "any", "bit": "any"}, positions, 1.0
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for bit in positions:
        bit_class = accumulator_bit_class(bit) if "accumulator" in selection.sites else number_format.bit_class(bit)
        label = (bit_class, f"bit {bit}" if "bit" in by else "any")
        groups.setdefault(label, []).append(bit)
    for (bit_class, bit_name), members in groups.items():
        yield {"bit_class": bit_class, "bit": bit_name}, tuple(members), len(members) / len(positions)


def _component_chances(selection: Selection, sites: Sequence[PopulationSite]) -> Iterator[tuple[str, float]]:
    """The chance of each component, as the selection draws a site and a value in it."""
    sizes: dict[str, int] = {}
    for site in sites:
        sizes[site.component] = sizes.get(site.component, 0) + (1 if selection.draw == "by_tensor" else site.numel)
    total = sum(sizes.values())
    for component, size in sizes.items():
        yield component, 1 / len(sizes) if selection.draw == "by_component" else size / total
