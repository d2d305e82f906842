"""A study as the takeaways see it: one model, task and data type, its faults as arrays of labels and shares."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aftershock.faults import Fault, Flip, ScatteredOutput, ScatteredWeights, StoredWordSite, parse_fault
from aftershock.models import FIRST_TOKEN, stage_of
from aftershock.numerics import format_of
from aftershock.stats import Design, Estimate, cluster_interval, weighted_interval
from aftershock.study.records import DUE, SDC, GoldenRecord, TrialRecord
from aftershock.study.store import StoredStudy
from aftershock.study.verdict import design

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.str_]
Mask = npt.NDArray[np.bool_]

FAILED = SDC | DUE
"""Outcomes by which a right answer is lost, whatever the reason: accuracy, LLMFI's measure, counts all of them."""

CLEAR_OF_CHANCE = 3.0
"""Standard errors that golden accuracy must lie above chance for an effect on it to be visible."""

_KINDS = {
    **dict.fromkeys(("weight", "stored"), "memory"),
    **dict.fromkeys(("activation", "accumulator", "score", "probability", "head_output"), "computation"),
    **dict.fromkeys(("key", "value"), "cache"),
}


@dataclass(frozen=True)
class Cell:
    """One study. All arrays have shape (faults,) and follow `trials`; labels are "" and numbers -1 where a fault has
    none."""

    name: str
    study: StoredStudy

    @cached_property
    def trials(self) -> tuple[TrialRecord, ...]:
        """The trials that count."""
        return self.study.counted

    @cached_property
    def drawn(self) -> Design | None:
        """How they were drawn; None for uniformly."""
        return design(self.trials)

    @cached_property
    def faults(self) -> tuple[Fault | None, ...]:
        """The fault of each trial; None of a set, or of one that lies in many values."""
        alone = (
            parse_fault(trial.faults[0]) if len(trial.faults) == trial.fault_count == 1 else None
            for trial in self.trials
        )
        return tuple(None if fault is None or _is_set(fault) else fault for fault in alone)

    @cached_property
    def kind(self) -> Labels:
        """`memory`, `computation` or `cache`; of sets of faults none."""
        return _labels(
            "" if fault is None else _KINDS.get(trial.site, "")
            for trial, fault in zip(self.trials, self.faults, strict=True)
        )

    @cached_property
    def component(self) -> Labels:
        """The component struck."""
        return _labels(trial.component for trial in self.trials)

    @cached_property
    def layer(self) -> Ints:
        """The decoder block struck."""
        return _numbers(trial.layer for trial in self.trials)

    @cached_property
    def begins(self) -> Labels:
        """The stage in which the fault is there first: `prefill`, `first_token` or `decode`; of the cache the stage of
        the token whose word it is."""
        return _labels(
            stage_of(fault.trigger.first) if fault is not None and trial.stage == "persistent" else trial.stage
            for trial, fault in zip(self.trials, self.faults, strict=True)
        )

    @cached_property
    def decode_step(self) -> Ints:
        """The decode step of a computation fault."""
        return _numbers(
            fault.trigger.first - FIRST_TOKEN
            if fault is not None and kind == "computation" and trial.stage == "decode"
            else None
            for trial, fault, kind in zip(self.trials, self.faults, self.kind, strict=True)
        )

    @cached_property
    def flips(self) -> Ints:
        """Bits flipped in the one word struck."""
        return _numbers(
            len(fault.corruption.bits) if fault is not None and isinstance(fault.corruption, Flip) else None
            for fault in self.faults
        )

    @cached_property
    def bit(self) -> Ints:
        """Position of the only bit flipped, in a word of the model's own format."""
        own = (self.flips == 1) & (self.format == self.study.environment.dtype)
        return np.where(own, _numbers(trial.bits[0] if trial.bits else None for trial in self.trials), -1)

    @property
    def top_exponent_bit(self) -> int:
        """Position of the most significant exponent bit in the model's format."""
        return format_of(self.study.environment.dtype).bits - 2

    @cached_property
    def format(self) -> Labels:
        """The number format of the word struck: `integer` for packed weights and integer sums, else the model's."""
        return _labels(
            "" if fault is None else _format(fault, trial, self.study.environment.dtype)
            for trial, fault in zip(self.trials, self.faults, strict=True)
        )

    @cached_property
    def golden(self) -> dict[str, GoldenRecord]:
        """Golden answers that have a reference, by item."""
        return {record.item: record for record in self.study.golden if record.right is not None}

    @property
    def accuracy(self) -> float:
        """Share of golden's answers that are right; there must be one with a reference."""
        return float(np.mean([record.right for record in self.golden.values()]))

    @cached_property
    def chance(self) -> float:
        """Accuracy of guessing, mean over items."""
        return float(np.mean([one.chance for one in self.golden.values()]))

    @property
    def clear_of_chance(self) -> bool:
        """Whether golden accuracy lies `CLEAR_OF_CHANCE` standard errors above chance, the larger of the observed one
        and that of guessing."""
        spread = max(rate * (1 - rate) for rate in (self.accuracy, self.chance))
        return self.accuracy - self.chance > CLEAR_OF_CHANCE * sqrt(spread / len(self.golden))

    @property
    def unfit(self) -> str | None:
        """Why nothing can be concluded from the study; None where something can."""
        settings = self.study.settings
        if settings.search.values:
            return "a search chose its faults"
        if settings.fault_list:
            return "its faults are a list given by hand, no random draw"
        if has_random_weights(self.study.environment.model):
            return "its model has random weights"
        return None if self.golden else "none of its answers has a reference"

    @property
    def blind(self) -> str | None:
        """Why an effect can't be seen in its accuracy; None where it can."""
        if self.clear_of_chance:
            return None
        return (
            f"golden accuracy {100 * self.accuracy:.1f} % is less than {CLEAR_OF_CHANCE:g} standard errors above "
            f"chance ({100 * self.chance:.1f} %)"
        )

    @property
    def has_experts(self) -> bool:
        """Whether faults struck experts or their router."""
        return bool(np.isin(self.component, ("router", "expert")).any())

    def shares(self, items: Iterable[str], outcomes: frozenset[str] = FAILED) -> Floats:
        """Share of each fault's eligible answers to `items` that have one of the outcomes; NaN without any."""
        asked = frozenset(items)
        found = [
            [item.outcome in outcomes for item in trial.items if item.eligible and item.item in asked]
            for trial in self.trials
        ]
        return np.array([sum(own) / len(own) if own else np.nan for own in found], dtype=np.float64)

    @cached_property
    def lost(self) -> Floats:
        """Share of each fault's eligible answers with a reference that are lost; NaN without any."""
        return self.shares(self.golden)

    def rate(self, shares: Floats, mask: Mask) -> Estimate:
        """Mean share of the faults in the mask, weighted as they were drawn; one of them must have a share."""
        own = np.where(mask, shares, np.nan)
        return cluster_interval(own) if self.drawn is None else weighted_interval(own, self.drawn)


def cells(studies: Sequence[StoredStudy]) -> tuple[Cell, ...]:
    """A cell for every study, named by its model, task and data type, and by a number where these are the same."""
    names: list[str] = []
    for study in studies:
        task = study.settings.task.spec
        stored = study.settings.model.storage
        name = " · ".join(
            [
                study.environment.model,
                Path(task).stem if task.endswith((".jsonl", ".txt")) else task,
                study.environment.dtype + (f" ({stored})" if stored else ""),
            ]
        )
        same = sum(other.partition(" #")[0] == name for other in names)
        names.append(f"{name} #{same + 1}" if same else name)
    return tuple(map(Cell, names, studies))


def is_letter(record: GoldenRecord) -> bool:
    """Whether the answer asked for is the letter of an option, which the model writes."""
    return record.kind == "generation" and record.chance > 0


def _is_set(fault: Fault) -> bool:
    return fault.spreads or isinstance(fault.site, ScatteredWeights | ScatteredOutput)


def _format(fault: Fault, trial: TrialRecord, dtype: str) -> str:
    match fault.site:
        case StoredWordSite(field="quant"):
            return "integer"
        case StoredWordSite():
            return ""
    return "integer" if trial.site == "accumulator" else dtype


def _labels(values: Iterable[str]) -> Labels:
    return np.array(list(values), dtype=np.str_)


def _numbers(values: Iterable[int | None]) -> Ints:
    return np.array([-1 if value is None else value for value in values], dtype=np.int64)


def has_random_weights(name: str) -> bool:
    """Whether a model says so itself: its name holds the word `random`."""
    return re.search(r"(?<![a-z])random(?![a-z])", name.casefold()) is not None
