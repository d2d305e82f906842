"""Faults in the key-value cache: a word is struck as it is written, or later where it lies."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from aftershock.errors import ContractError, InputError
from aftershock.faults import CachedSite, Fault, column
from aftershock.inject.struck import Struck, strike
from aftershock.models import ColumnCache, LoadedModel, Pass
from aftershock.numerics import words


@dataclass(frozen=True)
class _Due:
    """A fault that the next forward call must strike, at one column in each of some rows; `places` are those of the
    rows in the tensor that is struck: what the call writes, or (`stored`) what calls before it wrote."""

    fault: int
    stored: bool
    rows: list[int]
    places: list[int]
    columns: list[int]


@dataclass(frozen=True)
class _Held:
    """Words of a cache that a fault with an end replaced."""

    cache: Cache
    rows: list[int]
    columns: list[int]
    old: torch.Tensor


class CachedFaults:
    """Those of a fault set that lie in the key-value cache; the others are left alone.

    A fault that is there from its entry's own pass on is struck as the entry is written, one that begins later in the
    cache, before the first call that reads it so. Where rows share a context its keys and values are one row's, and
    the others hold what that one wrote. A word of a fault that ends is written back before the first call after it, or
    by `put_back`; a cache is one trial's, so the others need not be.

    Raises InputError when faults on one word overlap in part, since undoing one would undo the other.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range]) -> None:
        _refuse_overlaps(faults)
        self._model, self._rows = model, rows
        self._sites = {number: fault.site for number, fault in enumerate(faults) if isinstance(fault.site, CachedSite)}
        self._faults = {number: faults[number] for number in self._sites}
        self._due: dict[str, list[_Due]] = {}
        self._over: dict[str, list[int]] = {}
        self._held: dict[int, list[_Held]] = {}
        self._pass: Pass | None = None
        self.struck: list[Struck] = []
        self.reached: set[int] = set()

    def register(self) -> Iterable[RemovableHandle]:
        """Hooks on the attention modules that the faults name."""
        for name in dict.fromkeys(site.module for site in self._sites.values()):
            module = self._model.module.get_submodule(name)
            yield module.register_forward_pre_hook(self._hook(name), with_kwargs=True)

    def missed(self) -> list[int]:
        """Faults that were due in a call and did not fire; they are forgotten."""
        found = [due.fault for module in self._due.values() for due in module]
        self._due.clear()
        return found

    def begin_pass(self, call: Pass) -> None:
        """This call comes next."""
        self._pass = call
        self._over.clear()
        for number, fault in self._faults.items():
            end = fault.trigger.end
            if end is not None and call.first < end <= call.last:
                raise ContractError(f"'{fault}' ends inside a forward call: cut the run there")
            if end is not None and end <= call.first:
                self._over.setdefault(self._sites[number].module, []).append(number)
                continue
            due = self._due_in(number, call)
            if due.rows:
                self._due.setdefault(self._sites[number].module, []).append(due)

    @torch.inference_mode()
    def put_back(self) -> None:
        """Write back the words of every fault that has an end."""
        for number in sorted(self._held, reverse=True):
            self._restore(number)

    def _due_in(self, number: int, call: Pass) -> _Due:
        fault, entry, block = self._faults[number], self._sites[number].entry, call.block
        stored = fault.first > entry.number
        due = _Due(number, stored, [], [], [])
        if stored and call.first < fault.first <= call.last:
            raise ContractError(f"'{fault}' begins inside a forward call: cut the run there")
        if stored and call.first != fault.first:
            return due
        rows = range(block.rows) if stored else call.rows
        for place, row in enumerate(rows):
            length = block.context_lengths[row]
            token = column(entry.number, entry.token, length)
            at = block.context_width - length + token
            here = at < call.start if stored else call.start <= at < call.stop
            written = token >= 0 and block.holds(row, range(at, at + 1))
            if row in self._rows[number] and here and written and call.active[row]:
                due.rows.append(row)
                due.places.append(place)
                due.columns.append(at)
        return due

    def _hook(self, name: str) -> Callable[..., Any]:
        def before(module: torch.nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
            # The last written first, where several are of one word.
            for number in reversed(self._over.pop(name, ())):
                self._restore(number)
            due = self._due.pop(name, ())
            if not due:
                return None
            given = next((key for key, value in keywords.items() if isinstance(value, Cache)), None)
            if given is None:
                raise ContractError(f"'{self._faults[due[0].fault]}' was due, but {name} ran without a cache")
            cache = keywords[given]
            for one in due:
                if one.stored:
                    self._strike_stored(one, cache)
            writing = _Writing(cache, lambda keys, values: self._strike_written(due, cache, keys, values))
            return arguments, {**keywords, given: writing}

        return before

    def _strike_stored(self, due: _Due, cache: Cache) -> None:
        states, first = self._stored(due.fault, cache)
        # A layer that slides has let go of what it can't see any more.
        kept = [number for number, at in enumerate(due.columns) if at >= first]
        rows, columns = [due.rows[number] for number in kept], [due.columns[number] for number in kept]
        if kept:
            old = self._strike(due.fault, states, rows, rows, columns, first)
            self._hold(due.fault, cache, rows, columns, old)

    def _strike_written(self, dues: Sequence[_Due], cache: Cache, keys: torch.Tensor, values: torch.Tensor) -> None:
        call = self._pass
        assert call is not None
        for due in dues:
            if due.stored:
                continue
            states = keys if self._sites[due.fault].part == "key" else values
            old = self._strike(due.fault, states, due.rows, due.places, due.columns, call.start)
            runners = call.runner.tolist()
            for word, place, at in zip(torch.split(old, 1), due.places, due.columns, strict=True):
                holders = [row for row, runner in enumerate(runners) if runner == place]
                self._hold(due.fault, cache, holders, [at] * len(holders), word.expand(len(holders)))

    def _strike(
        self, number: int, states: torch.Tensor, rows: list[int], places: list[int], columns: list[int], first: int
    ) -> torch.Tensor:
        """Strike keys or values, shape (rows, heads, columns, channels), that begin with column `first`."""
        fault, site, call = self._faults[number], self._sites[number], self._pass
        assert call is not None
        index = _index(site, states, places, [at - first for at in columns])
        old, changes = strike(states, index, [fault] * len(places))
        self.reached.update(rows)
        for row, at, change in zip(rows, columns, changes, strict=True):
            token = at - (call.block.context_width - call.block.context_lengths[row])
            place = (token, site.head, site.channel)
            self.struck.append(Struck(number, f"{site.module}.{site.part}", place, row, *change))
        return old

    def _hold(self, number: int, cache: Cache, rows: list[int], columns: list[int], old: torch.Tensor) -> None:
        if self._faults[number].trigger.end is not None:
            self._held.setdefault(number, []).append(_Held(cache, rows, columns, old))

    def _restore(self, number: int) -> None:
        for held in reversed(self._held.pop(number, [])):
            states, first = self._stored(number, held.cache)
            kept = [place for place, at in enumerate(held.columns) if at >= first]
            rows, columns = [held.rows[place] for place in kept], [held.columns[place] - first for place in kept]
            index = _index(self._sites[number], states, rows, columns)
            stored, old = words(states), held.old[kept]
            stored[index] = old
            if not torch.equal(stored[index], old):
                raise ContractError(f"undo of '{self._faults[number]}' did not restore its words")

    def _stored(self, number: int, cache: Cache) -> tuple[torch.Tensor, int]:
        """The keys or values that the cache holds, and the column of the first of them."""
        site, call = self._sites[number], self._pass
        assert call is not None
        layer = next(one.layer for one in self._model.components.cached if one.module == site.module)
        if isinstance(cache, ColumnCache):
            return cache.stored(layer)[site.part == "value"], 0
        kept: Any = cache.layers[layer]
        states: torch.Tensor = kept.keys if site.part == "key" else kept.values
        return states, max(0, cache.get_seq_length(layer) - states.shape[2])


def _refuse_overlaps(faults: Sequence[Fault]) -> None:
    seen: dict[CachedSite, list[Fault]] = {}
    for fault in faults:
        if isinstance(fault.site, CachedSite):
            for other in seen.setdefault(fault.site, []):
                if other.trigger != fault.trigger and (
                    other.trigger.covers(fault.first) or fault.trigger.covers(other.first)
                ):
                    raise InputError(
                        f"fault '{fault}' overlaps in time with another fault on the same word: "
                        "give them the same trigger or passes apart"
                    )
            seen[fault.site].append(fault)


class _Writing:
    """A cache for one call of one layer that shows what is about to be written before it is."""

    def __init__(self, cache: Cache, show: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        self._cache, self._show = cache, show

    def update(self, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **named: Any) -> Any:
        self._show(keys, values)
        return self._cache.update(keys, values, *rest, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _index(
    site: CachedSite, states: torch.Tensor, rows: list[int], columns: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The site's channel at some rows and columns."""
    places = [(row, site.head, at, site.channel) for row, at in zip(rows, columns, strict=True)]
    index = torch.tensor(places, dtype=torch.int64).reshape(-1, 4).to(states.device, non_blocking=True)
    row, head, at, channel = index.unbind(1)
    return row, head, at, channel
