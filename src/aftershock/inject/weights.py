"""Faults in stored parameters: armed in place, word by word or a scattered set at once, and written back."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aftershock.errors import ContractError
from aftershock.faults import (
    ALWAYS,
    Fault,
    ScatteredWeights,
    Trigger,
    WeightSite,
    parameter_site,
    scattered_weights,
)
from aftershock.inject.corrupt import corrupt, corrupt_places
from aftershock.inject.due import Claims
from aftershock.inject.struck import KEPT, Index, Struck, StruckSet, changes, digest_of, write
from aftershock.models import LoadedModel, Pass
from aftershock.numerics import format_of, words


@dataclass(frozen=True)
class _Group:
    """Weight faults of one tensor and one trigger that are armed at once: no word twice, or a single scattered set."""

    faults: tuple[int, ...]
    name: str
    trigger: Trigger


@dataclass(frozen=True)
class _Armed:
    """A group that is in the weights now, and the words that it replaced."""

    group: _Group
    tensor: torch.Tensor
    index: Index
    old: torch.Tensor


class WeightFaults:
    """Those of a fault set that lie in stored parameters; the others are left alone.

    Nothing is copied but the words struck. Raises InputError when faults on one word, or one of which is a scattered
    set in the same tensor, overlap in part.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range]) -> None:
        self._model, self._rows = model, rows
        self._faults = {number: fault for number, fault in enumerate(faults) if fault.in_weights}
        self._groups = _grouped(self._faults)
        self._armed: list[_Armed] = []
        self.struck: list[Struck | StruckSet] = []
        self.reached: set[int] = set()

    def arm_lasting(self) -> None:
        """Arm the faults that are there from the start to the end."""
        self._arm(lambda trigger: trigger == ALWAYS)

    def begin_pass(self, call: Pass) -> None:
        """This call comes next: take back the faults whose passes are over, and arm those that begin."""
        for fault in self._faults.values():
            if fault.trigger.boundaries & set(range(call.first + 1, call.last + 1)):
                raise ContractError(f"'{fault}' begins or ends inside a forward call: cut the run there")
        self._take_back(lambda armed: not armed.group.trigger.covers(call.first))
        self._arm(lambda trigger: trigger.covers(call.first))
        present = {self._rows[number] for armed in self._armed for number in armed.group.faults}
        self.reached.update(row for row in call.rows if any(row in rows for rows in present) and call.takes_part(row))

    def take_back(self) -> None:
        """Write every word back."""
        self._take_back(lambda armed: True)

    def _arm(self, begins: Callable[[Trigger], bool]) -> None:
        present = {id(armed.group) for armed in self._armed}
        for group in self._groups:
            if id(group) not in present and begins(group.trigger):
                if isinstance(self._faults[group.faults[0]].site, ScatteredWeights):
                    self._arm_scattered(group)
                else:
                    self._arm_words(group)

    def _arm_words(self, group: _Group) -> None:
        tensor = self._model.module.get_parameter(group.name).detach()
        faults = [self._faults[number] for number in group.faults]
        places = [fault.site.index for fault in faults if isinstance(fault.site, WeightSite)]
        armed = self._armed_at(group, tensor, torch.tensor(places).to(tensor.device, non_blocking=True).unbind(1))
        number_format = format_of(tensor.dtype)
        new = corrupt(armed.old, [fault.corruption for fault in faults], number_format)
        write(tensor, armed.index, new, faults[0])
        for number, place, change in zip(group.faults, places, changes(armed.old, new, number_format), strict=True):
            self.struck.append(Struck(number, group.name, place, None, *change))

    def _arm_scattered(self, group: _Group) -> None:
        (number,) = group.faults
        fault, tensor = self._faults[number], self._model.module.get_parameter(group.name).detach()
        places = scattered_weights(fault, parameter_site(fault, self._model.components))
        if not len(places.values):
            return
        index = torch.from_numpy(places.values).to(tensor.device, non_blocking=True)
        armed = self._armed_at(group, tensor.view(-1), (index,))
        number_format = format_of(tensor.dtype)
        new = corrupt_places(armed.old, fault.corruption, places, number_format)
        write(armed.tensor, armed.index, new, fault)
        first = zip(
            zip(*(axis.tolist() for axis in np.unravel_index(places.values[:KEPT], tensor.shape)), strict=True),
            changes(armed.old[:KEPT], new[:KEPT], number_format),
            strict=True,
        )
        self.struck.append(
            StruckSet(
                number,
                group.name,
                len(index),
                digest_of([index], armed.old, new),
                tuple(Struck(number, group.name, place, None, *change) for place, change in first),
            )
        )

    def _armed_at(self, group: _Group, tensor: torch.Tensor, index: Index) -> _Armed:
        """Note the words that the group is about to replace: known before anything is written, they can be taken back
        whatever happens."""
        armed = _Armed(group, tensor, index, words(tensor)[index])
        self._armed.append(armed)
        return armed

    def _take_back(self, ends: Callable[[_Armed], bool]) -> None:
        """Write old words back, the last written first, and compare them as words."""
        lost = []
        for armed in reversed([armed for armed in self._armed if ends(armed)]):
            stored = words(armed.tensor)
            stored[armed.index] = armed.old
            self._armed = [other for other in self._armed if other is not armed]
            if not torch.equal(stored[armed.index], armed.old):
                lost.append(armed.group.faults[0])
        if lost:
            raise ContractError(f"undo of '{self._faults[lost[0]]}' did not restore its words")


def _grouped(faults: dict[int, Fault]) -> tuple[_Group, ...]:
    """Weight faults by tensor and trigger; a word that several faults name goes into one group for each.

    Groups keep the order of the faults, so a later fault on a word acts on the result of an earlier one.
    Raises InputError when faults on one word overlap in part, since undoing one would undo the other.
    """
    names = {
        number: fault.site.parameter
        for number, fault in faults.items()
        if isinstance(fault.site, WeightSite | ScatteredWeights)
    }
    scattered = {fault.site.parameter for fault in faults.values() if isinstance(fault.site, ScatteredWeights)}
    collected: dict[tuple[object, ...], list[int]] = {}
    claims, alike = Claims(), Counter[tuple[WeightSite, Trigger]]()
    for number, fault in faults.items():
        site, trigger = fault.site, fault.trigger
        claims.add(names[number] if names[number] in scattered else site, fault)
        if isinstance(site, WeightSite):
            collected.setdefault((site.parameter, trigger, alike[site, trigger]), []).append(number)
            alike[site, trigger] += 1
        else:
            collected[number,] = [number]
    return tuple(
        _Group(tuple(members), names[members[0]], faults[members[0]].trigger) for members in collected.values()
    )
