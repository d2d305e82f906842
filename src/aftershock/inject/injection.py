"""Arm faults on a live model, prove that they fired exactly as named, and undo them.

Weights are written in place through an integer view and written back word by word. An activation is written
by one hook on the module it belongs to, in the pass it names; a word of the key-value cache, and what heads make, by
some on the attention that keeps or makes it. Nothing is copied but the words struck.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from aftershock.errors import ContractError, InputError
from aftershock.faults import (
    ALWAYS,
    ActivationSite,
    Fault,
    StoredWordSite,
    Trigger,
    WeightSite,
    check,
    output_site,
)
from aftershock.inject.cached import CachedFaults
from aftershock.inject.due import Claims, Due, due_rows
from aftershock.inject.heads import HeadFaults
from aftershock.inject.struck import Struck, strike
from aftershock.models import LoadedModel, OutputSite, Pass, output_tensor, reroute
from aftershock.numerics import words

_EVERY_ROW = range(2**62)


@dataclass(frozen=True)
class _WeightGroup:
    """Weight faults of one tensor and one trigger, no word twice."""

    faults: tuple[int, ...]
    tensor: torch.Tensor
    index: tuple[torch.Tensor, ...]
    trigger: Trigger


@dataclass(frozen=True)
class _Armed:
    """A group that is in the weights now, and the words it replaced."""

    group: _WeightGroup
    old: torch.Tensor


class Injection:
    """A fault set armed on a model, as a context manager.

    Inside, call `begin_pass` before each forward call (the pass runners of `aftershock.models` take it as
    `before_pass`). Weight faults that are present from the start to the end are armed on entry, so they need no
    `begin_pass` and work under any code that runs the model. On exit every word is written back and compared.
    `struck` then tells what was hit.

    `rows[n]` are the rows that fault n strikes in an activation or in the cache, and those that it counts as reached in
    a weight (it acts on all); every row where none are given.

    Raises InputError on construction when the model has no such place. Raises ContractError when a fault that was
    due did not fire, when a fault that waits for a pass was told of none, and when an undo was not exact.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range] | None = None) -> None:
        for fault in faults:
            if isinstance(fault.site, StoredWordSite):
                raise InputError(f"fault '{fault}' names a stored word: arm what `element_faults` makes of it")
            check(fault, model.components, model.format)
        self._faults = tuple(faults)
        self._rows = [_EVERY_ROW] * len(self._faults) if rows is None else rows
        self._groups = _weight_groups(model, self._faults)
        self._outputs = {
            number: output_site(fault, model.components)
            for number, fault in enumerate(self._faults)
            if isinstance(fault.site, ActivationSite)
        }
        self._modules = {output.module: model.module.get_submodule(output.module) for output in self._outputs.values()}
        self._hooks: list[RemovableHandle] = []
        self._armed: list[_Armed] = []
        self._due: dict[str, list[Due]] = {}
        self._pass: Pass | None = None
        self._struck: list[Struck] = []
        self._reached: set[int] = set()
        self._cached = CachedFaults(model, self._faults, self._rows)
        self._heads = HeadFaults(model, self._faults, self._rows)

    @property
    def struck(self) -> tuple[Struck, ...]:
        """Every word written so far: in weights and activations, in the cache, in heads, each in the order of
        writing."""
        return (*self._struck, *self._cached.struck, *self._heads.struck)

    @property
    def reached_rows(self) -> frozenset[int]:
        """Rows that took part in a pass with some fault present."""
        return frozenset(self._reached | self._cached.reached | self._heads.reached)

    def __enter__(self) -> "Injection":
        try:
            for name, module in self._modules.items():
                self._hooks.append(module.register_forward_hook(self._hook(name)))
            self._hooks.extend(self._cached.register())
            self._hooks.extend(self._heads.register())
            self._arm_weights(lambda trigger: trigger == ALWAYS)
        except BaseException:
            self._disarm()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disarm()
        if error is None:
            self._require_fired()
            self._require_announced()

    def begin_pass(self, call: Pass) -> None:
        """Take back the weight faults whose passes are over, arm those that begin, note what is due."""
        self._require_fired()
        self._pass = call
        for fault in self._faults:
            if isinstance(fault.site, WeightSite) and fault.trigger.boundaries & set(
                range(call.first + 1, call.last + 1)
            ):
                raise ContractError(f"'{fault}' begins or ends inside a forward call: cut the run there")
        self._take_back(lambda armed: not armed.group.trigger.covers(call.first))
        self._arm_weights(lambda trigger: trigger.covers(call.first))
        present = {self._rows[number] for armed in self._armed for number in armed.group.faults}
        self._reached.update(row for row in call.rows if any(row in rows for rows in present) and call.takes_part(row))
        for number, output in self._outputs.items():
            entry = self._faults[number].entry
            if call.first <= entry.number <= call.last:
                columns = range(call.start, call.stop)
                due = due_rows(number, entry, self._rows[number], call, call.rows, columns)
                if due.rows:
                    self._due.setdefault(output.module, []).append(due)
        self._cached.begin_pass(call)
        self._heads.begin_pass(call)

    def _arm_weights(self, begins: Callable[[Trigger], bool]) -> None:
        present = {id(armed.group) for armed in self._armed}
        for group in self._groups:
            if id(group) in present or not begins(group.trigger):
                continue
            stored = words(group.tensor)
            # Known before anything is written, so that it can be taken back whatever happens.
            self._armed.append(_Armed(group, stored[group.index]))
            _, changes = strike(group.tensor, group.index, [self._faults[number] for number in group.faults])
            for number, change in zip(group.faults, changes, strict=True):
                site = self._faults[number].site
                assert isinstance(site, WeightSite)
                self._struck.append(Struck(number, site.parameter, site.index, None, *change))

    def _take_back(self, ends: Callable[[_Armed], bool]) -> None:
        """Write old words back, the last written first, and compare them as words."""
        lost = []
        for armed in reversed([armed for armed in self._armed if ends(armed)]):
            stored = words(armed.group.tensor)
            stored[armed.group.index] = armed.old
            self._armed = [other for other in self._armed if other is not armed]
            if not torch.equal(stored[armed.group.index], armed.old):
                lost.append(armed.group.faults[0])
        if lost:
            raise ContractError(f"undo of '{self._faults[lost[0]]}' did not restore its words")

    def _disarm(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        try:
            self._cached.put_back()
        finally:
            self._take_back(lambda armed: True)

    def _require_fired(self) -> None:
        missed = [due.fault for module in self._due.values() for due in module]
        missed += self._cached.missed() + self._heads.missed()
        self._due.clear()
        if missed:
            raise ContractError(
                f"'{self._faults[missed[0]]}' was due in a forward call that never made what it strikes"
            )

    def _require_announced(self) -> None:
        waiting = [
            fault for fault in self._faults if not (isinstance(fault.site, WeightSite) and fault.trigger == ALWAYS)
        ]
        if waiting and self._pass is None:
            raise ContractError(f"'{waiting[0]}' waits for a pass, and none was announced with begin_pass")

    def _hook(self, name: str) -> Callable[[torch.nn.Module, Any, Any], Any]:
        def struck(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            due_now = self._due.pop(name, ())
            for due in due_now:
                self._strike(due, output_tensor(output))
            if isinstance(output, tuple) and any(self._outputs[due.fault].component == "router" for due in due_now):
                # A router has chosen the experts already: let it choose again, from the struck logits.
                return reroute(module, inputs[0], output_tensor(output))
            return None

        return struck

    def _strike(self, due: Due, output: torch.Tensor) -> None:
        fault, site, call = self._faults[due.fault], self._outputs[due.fault], self._pass
        assert call is not None
        assert isinstance(fault.site, ActivationSite)
        # The head runs on the last columns of a call only, a projection before it on all of them.
        begin = call.stop - output.shape[1] if site.component == "lm_head" else call.start
        times = [at - begin for at in due.columns]
        if min(times) < 0:
            raise ContractError(f"'{fault}' names a token whose output its pass does not compute")
        index = _element(site, output, due.places, times, fault.site.channel, call.stop - begin)
        _, changes = strike(output, index, [fault] * len(due.rows))
        self._reached.update(due.rows)
        for row, at, change in zip(due.rows, due.columns, changes, strict=True):
            place = (at - call.block.first_column(row), fault.site.channel)
            self._struck.append(Struck(due.fault, fault.site.module, place, row, *change))


def _element(
    site: OutputSite, output: torch.Tensor, rows: list[int], times: list[int], channel: int, columns: int
) -> tuple[torch.Tensor, ...]:
    """Index of (row, token, channel) in an output of the site's layout, one entry a row."""

    def on_device(values: list[int]) -> torch.Tensor:
        return torch.tensor(values).to(output.device, non_blocking=True)

    row, time = on_device(rows), on_device(times)
    if site.layout == "btc":
        return row, time, on_device([channel] * len(rows))
    if site.layout == "nc":
        return row * columns + time, on_device([channel] * len(rows))
    head, within = divmod(channel, output.shape[-1])
    heads, channels = on_device([head] * len(rows)), on_device([within] * len(rows))
    return (row, time, heads, channels) if site.layout == "bthc" else (row, heads, time, channels)


def _weight_groups(model: LoadedModel, faults: tuple[Fault, ...]) -> tuple[_WeightGroup, ...]:
    """Weight faults by tensor and trigger; a word that several faults name goes into one group for each.

    Groups keep the order of the faults, so a later fault on a word acts on the result of an earlier one.
    Raises InputError when faults on one word overlap in part, since undoing one would undo the other.
    """
    collected: dict[tuple[str, Trigger, int], tuple[list[int], list[tuple[int, ...]]]] = {}
    claims, alike = Claims(), Counter[tuple[WeightSite, Trigger]]()
    for number, fault in enumerate(faults):
        site, trigger = fault.site, fault.trigger
        if not isinstance(site, WeightSite):
            continue
        claims.add(site, fault)
        key = (site.parameter, trigger, alike[site, trigger])
        alike[site, trigger] += 1
        members, indices = collected.setdefault(key, ([], []))
        members.append(number)
        indices.append(site.index)
    groups = []
    for (name, trigger, _), (members, indices) in collected.items():
        stored = model.module.get_parameter(name).detach()
        groups.append(
            _WeightGroup(
                tuple(members), stored, torch.tensor(indices).to(stored.device, non_blocking=True).unbind(1), trigger
            )
        )
    return tuple(groups)
