"""Faults in the key-value cache: a word is struck as it is written, or later where it lies."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from aftershock.errors import ContractError
from aftershock.faults import CachedSite, Fault, cache_site
from aftershock.inject.due import Claims, Due, due_rows
from aftershock.inject.struck import Struck, strike
from aftershock.models import ColumnCache, LoadedModel, Pass
from aftershock.numerics import words


@dataclass(frozen=True)
class _Replaced:
    """Words of a cache that a fault with an end took the place of."""

    cache: Cache
    rows: list[int]
    columns: list[int]
    old: torch.Tensor


class CachedFaults:
    """Those of a fault set that lie in the key-value cache; the others are left alone.

    A fault that is there from its entry's own pass on is struck as the entry is written, one that begins later in the
    cache, before the first call that reads it so. Where rows share a context its keys and values are one row's, and
    the others hold what that one wrote. A word of a fault that ends is written back before the first call after it, or
    by `put_back`, since answers go on from a run's keys and values after the faults are gone from the model. A cache is
    one trial's, so words of faults that last need not be.

    Raises InputError when faults on one word overlap in part; `begin_pass` does where they spell its token differently.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range]) -> None:
        self._model, self._rows = model, rows
        self._sites = {number: fault.site for number, fault in enumerate(faults) if isinstance(fault.site, CachedSite)}
        self._kept = {number: cache_site(faults[number], model.components) for number in self._sites}
        self._faults = {number: faults[number] for number in self._sites}
        self._claims = Claims()
        for number, fault in self._faults.items():
            self._claims.add((fault.site, rows[number]), fault)
        # By attention: faults due in what it writes, and in what is stored for it; faults that are over.
        self._written: dict[str, list[Due]] = {}
        self._stored: dict[str, list[Due]] = {}
        self._over: dict[str, list[int]] = {}
        self._replaced: dict[int, list[_Replaced]] = {}
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
        found = [due.fault for dues in (*self._stored.values(), *self._written.values()) for due in dues]
        self._stored.clear()
        self._written.clear()
        return found

    def begin_pass(self, call: Pass) -> None:
        """This call comes next."""
        self._pass = call
        self._over.clear()
        for number, fault in self._faults.items():
            module, end = self._sites[number].module, fault.trigger.end
            if end is not None and call.first < end <= call.last:
                raise ContractError(f"'{fault}' ends inside a forward call: cut the run there")
            if end is not None and end <= call.first:
                if number in self._replaced:
                    self._over.setdefault(module, []).append(number)
            elif fault.first == fault.entry.number:
                if call.first <= fault.first <= call.last:
                    columns = range(call.start, call.stop)
                    due = due_rows(number, fault.entry, self._rows[number], call, call.rows, columns)
                    self._note(due, self._written)
            elif call.first == fault.first:
                every, columns = range(call.block.rows), _seen_before(call, self._kept[number].window)
                self._note(due_rows(number, fault.entry, self._rows[number], call, every, columns), self._stored)
            elif call.first < fault.first <= call.last:
                raise ContractError(f"'{fault}' begins inside a forward call: cut the run there")

    @torch.inference_mode()
    def put_back(self) -> None:
        """Write back the words of every fault that has an end."""
        # All of them, whatever one of them raises; the last written first.
        with ExitStack() as restoring:
            for number in sorted(self._replaced):
                restoring.callback(self._restore, number)

    def _note(self, due: Due, dues: dict[str, list[Due]]) -> None:
        site, fault = self._sites[due.fault], self._faults[due.fault]
        for row, at in zip(due.rows, due.columns, strict=True):
            self._claims.add((site.part, site.module, site.head, site.channel, row, at), fault)
        if due.rows:
            dues.setdefault(site.module, []).append(due)

    def _hook(self, name: str) -> Callable[..., Any]:
        def before(module: torch.nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
            # The last written first, where several are of one word.
            for number in reversed(self._over.pop(name, ())):
                self._restore(number)
            waiting = [*self._stored.get(name, ()), *self._written.get(name, ())]
            if not waiting:
                return None
            given = next((key for key, value in keywords.items() if isinstance(value, Cache)), None)
            if given is None:
                raise ContractError(f"'{self._faults[waiting[0].fault]}' was due, but {name} ran without a cache")
            cache = keywords[given]
            for due in self._stored.pop(name, ()):
                self._strike_stored(due, cache)
            writing = _Writing(cache, lambda keys, values: self._strike_written(name, cache, keys, values))
            return arguments, {**keywords, given: writing}

        return before

    def _strike_stored(self, due: Due, cache: Cache) -> None:
        states, first = self._states(due.fault, cache)
        old = self._strike(due, states, first)
        if self._faults[due.fault].trigger.end is not None:
            self._replaced.setdefault(due.fault, []).append(_Replaced(cache, due.rows, due.columns, old))

    def _strike_written(self, name: str, cache: Cache, keys: torch.Tensor, values: torch.Tensor) -> None:
        call = self._pass
        assert call is not None
        for due in self._written.pop(name, ()):
            old = self._strike(due, keys if self._sites[due.fault].part == "key" else values, call.start)
            if self._faults[due.fault].trigger.end is not None:
                # Every row for which a struck one runs holds the word.
                places = torch.tensor(due.places, device=call.runner.device)
                rows, words_struck = (call.runner[:, None] == places).nonzero().unbind(1)
                columns = [due.columns[number] for number in words_struck.tolist()]
                replaced = _Replaced(cache, rows.tolist(), columns, old[words_struck.to(old.device)])
                self._replaced.setdefault(due.fault, []).append(replaced)

    def _strike(self, due: Due, states: torch.Tensor, first: int) -> torch.Tensor:
        """Strike keys or values, shape (rows, heads, columns, channels), that begin with column `first`; the old
        words."""
        fault, site, call = self._faults[due.fault], self._sites[due.fault], self._pass
        assert call is not None
        index = _index(site, states, due.places, [at - first for at in due.columns])
        old, changes = strike(states, index, [fault] * len(due.places))
        self.reached.update(due.rows)
        for row, at, change in zip(due.rows, due.columns, changes, strict=True):
            place = (at - call.block.first_column(row), site.head, site.channel)
            self.struck.append(Struck(due.fault, f"{site.module}.{site.part}", place, row, *change))
        return old

    def _restore(self, number: int) -> None:
        for replaced in self._replaced.pop(number):
            states, first = self._states(number, replaced.cache)
            # A layer that slides may have let go of some since.
            kept = [place for place, at in enumerate(replaced.columns) if at >= first]
            rows = [replaced.rows[place] for place in kept]
            columns = [replaced.columns[place] - first for place in kept]
            index = _index(self._sites[number], states, rows, columns)
            stored, old = words(states), replaced.old[kept]
            stored[index] = old
            if not torch.equal(stored[index], old):
                raise ContractError(f"undo of '{self._faults[number]}' did not restore its words")

    def _states(self, number: int, cache: Cache) -> tuple[torch.Tensor, int]:
        """The keys or values that the cache holds, and the column of the first of them."""
        layer, part = self._kept[number].layer, self._kept[number].part
        if isinstance(cache, ColumnCache):
            return cache.stored(layer)[part == "value"], 0
        kept: Any = cache.layers[layer]
        states: torch.Tensor = kept.keys if part == "key" else kept.values
        return states, cache.get_seq_length(layer) - states.shape[2]


def _seen_before(call: Pass, window: int | None) -> range:
    """The columns before a call that its first one sees through a window, which ends with its own."""
    return range(0 if window is None else max(0, call.start - window + 1), call.start)


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
