"""Cut the faults of a selection into strata whose chances are known, without counting a single draw.

A cell is a narrower selection: one kind of site, one component, one stage, some bits (of stored words of one kind). A
draw of the whole selection
falls into a cell with a chance that follows from how it draws, and a draw of the cell's own selection is exactly the
draw of the whole one, given that it falls there. Strata are groups of cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.fault import Fault
from aftershock.faults.grammar import parse_trigger
from aftershock.faults.moments import ALWAYS, Trigger
from aftershock.faults.parts import StratumKey, parts_of
from aftershock.faults.sample import sample_faults
from aftershock.faults.selection import LASTING, TRANSIENT, Population, Selection, SiteKind, StageName
from aftershock.models import stage_of
from aftershock.numerics import NumberFormat, generator


@dataclass(frozen=True)
class Cell:
    """Faults that `selection` draws from `population`; the whole selection's draw is one with probability `chance`.

    `labels` names the cell by every key; `stages` are the stages that the whole selection draws from, of which the
    cell's is one.
    """

    labels: dict[StratumKey, str]
    selection: Selection
    population: Population
    stages: tuple[StageName, ...]
    chance: float

    def allows(self, decode: bool, random: np.random.Generator) -> bool:
        """Whether a draw of the whole selection, for items that do (not) have the decode steps asked for, comes to this
        cell's stage: draw it and see. To draw items until they allow the cell is to draw them given the cell."""
        possible = [stage for stage in self.stages if stage != "decode" or decode] or self.stages
        return not possible or possible[random.integers(len(possible))] == self.labels["stage"]


@dataclass(frozen=True)
class Stratum:
    """Cells that agree in the keys of the plan."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def chance(self) -> float:
        """Probability that a draw of the whole selection falls here."""
        return sum(cell.chance for cell in self.cells)

    @property
    def component(self) -> str:
        """The component of its faults, where strata are told apart by it."""
        return self.cells[0].labels["component"]

    def cell(self, seed: int, index: int) -> Cell:
        """The cell of trial `index`, each as likely as in a draw of the whole selection that falls in this stratum."""
        ends = np.cumsum([cell.chance for cell in self.cells])
        place = generator(seed, index, "cell").random() * ends[-1]
        return self.cells[min(int(np.searchsorted(ends, place, side="right")), len(self.cells) - 1)]


def stratify(
    selection: Selection,
    population: Population,
    number_format: NumberFormat,
    by: tuple[StratumKey, ...],
    decode_chance: float,
) -> tuple[Stratum, ...]:
    """The strata of a selection, in order; their chances sum to 1.

    `by` are the labels that tell strata apart. `decode_chance` is the probability that a trial's items have the decode
    steps the selection asks for; without them a trial's stage is drawn from the others. Raises InputError where a
    trial can have more than one fault or bit, since its faults may then lie in several strata.
    """
    if not selection.strikes_one_value or selection.bits_per_word > 1:
        raise InputError(
            "a stratified plan puts one fault into one word or bit: leave count, rate, bits_per_word and pattern out"
        )
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in _cells(selection, population, number_format, by, decode_chance):
        groups.setdefault(tuple(cell.labels[key] for key in by), []).append(cell)
    return tuple(Stratum(" ".join(name) or "all", tuple(cells)) for name, cells in groups.items())


def cell_faults(
    cell: Cell, number_format: NumberFormat, decode_passes: int, seed: int, index: int
) -> tuple[Fault, ...]:
    """The fault of trial `index` in this cell, as `sample_faults` draws it."""
    return sample_faults(cell.selection, cell.population, number_format, decode_passes, seed, index)


def _cells(
    selection: Selection,
    population: Population,
    number_format: NumberFormat,
    by: tuple[StratumKey, ...],
    decode_chance: float,
) -> Iterator[Cell]:
    for kind in selection.sites:
        stages = _stages(kind, selection, population)
        for stage, stage_chance in _stage_chances(kind, selection, stages, decode_chance):
            sites = population.of(kind)
            if kind == "activation" and stage == "prefill":
                # The head's output exists for answer tokens only.
                sites = tuple(site for site in sites if site.component != "lm_head")
            for part in parts_of(selection, sites, number_format, by):
                component = part.sites[0].component
                narrow: dict[str, object] = {"sites": (kind,), "components": (component,)}
                if part.bits:
                    narrow |= {"bits": part.bits, "bit_classes": ()}
                if stage in stages:
                    narrow["stages"] = (stage,)
                yield Cell(
                    {"site": kind, "component": component, "stage": stage, **part.labels},
                    selection.model_copy(update=narrow),
                    population.where(frozenset(part.sites).__contains__),
                    stages,
                    stage_chance * part.chance / len(selection.sites),
                )


def _stages(kind: SiteKind, selection: Selection, population: Population) -> tuple[StageName, ...]:
    """The stages that faults of this kind are drawn from; none for those whose trigger is given."""
    if _given(kind, selection) is not None:
        return ()
    if kind != "activation":
        # Accumulators are those of decoder layers.
        return selection.stages
    beside_head = any(output.component != "lm_head" for output in population.outputs)
    return tuple(stage for stage in selection.stages if stage != "prefill" or beside_head)


def _given(kind: SiteKind, selection: Selection) -> Trigger | None:
    """The trigger that all faults of this kind have; None where theirs are drawn."""
    if kind in ("weight", "stored"):
        if selection.weight_trigger == TRANSIENT:
            return None
        return ALWAYS if selection.weight_trigger == LASTING else parse_trigger(selection.weight_trigger)
    return selection.lasting_outputs if kind in ("activation", "accumulator") else None


def _stage_chances(
    kind: SiteKind, selection: Selection, stages: tuple[StageName, ...], decode_chance: float
) -> Iterator[tuple[str, float]]:
    trigger = _given(kind, selection)
    if trigger is not None:
        yield (stage_of(trigger.first) if trigger.transient else "persistent"), 1.0
        return
    count = len(stages)
    for stage in stages:
        if stages == ("decode",) or "decode" not in stages:
            yield stage, 1 / count
        elif stage != "decode":
            yield stage, decode_chance / count + (1 - decode_chance) / (count - 1)
        elif decode_chance > 0:
            yield stage, decode_chance / count
