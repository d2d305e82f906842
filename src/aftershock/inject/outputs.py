"""Faults in outputs of modules: at one token, or at every token of some passes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from aftershock.errors import ContractError
from aftershock.faults import (
    ActivationSite,
    Fault,
    Places,
    ScatteredOutput,
    TokenScatter,
    every,
    joined,
    output_site,
)
from aftershock.inject.corrupt import corrupt_places
from aftershock.inject.due import Spans, due_rows, due_spans
from aftershock.inject.struck import KEPT, Index, Struck, StruckSet, changes, digest_of, write
from aftershock.models import BY_CHANNEL, FIRST_TOKEN, HeadSite, LoadedModel, OutputSite, Pass, output_tensor, reroute
from aftershock.numerics import format_of_words, words


@dataclass(frozen=True)
class _Strike:
    """Values of an output about to be struck, arrays of shape (n,): what is drawn for each, its row's place in the
    output and number in the block, its token (counted from the row's first), its column and, in `inner`, its
    channel; of a head its number and the channel or key (counted from the row's first)."""

    places: Places
    at: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray
    columns: np.ndarray
    inner: tuple[np.ndarray, ...]


class OutputFaults:
    """Those of a fault set that lie in outputs of modules; the others are left alone.

    One hook on each module struck. What a fault strikes in a row follows from the row's own tokens, wherever they stand
    in whatever block, so that a run token by token strikes the same values as one of many columns. Padding and rows
    whose answer has ended are left alone.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range]) -> None:
        self._model, self._rows = model, rows
        self._faults = {
            number: fault
            for number, fault in enumerate(faults)
            if isinstance(fault.site, ActivationSite | ScatteredOutput)
        }
        self._outputs = {number: output_site(fault, model.components) for number, fault in self._faults.items()}
        self._scattered = {
            number: TokenScatter(fault, self._outputs[number])
            for number, fault in self._faults.items()
            if isinstance(fault.site, ScatteredOutput)
        }
        self._due: dict[str, list[Spans]] = {}
        self._pass: Pass | None = None
        self.struck: list[Struck | StruckSet] = []
        self.reached: set[int] = set()

    def register(self) -> Iterable[RemovableHandle]:
        """Hooks on the modules that the faults name."""
        for name in dict.fromkeys(output.shown_by for output in self._outputs.values()):
            # First of all hooks: whoever else looks at an output sees what the fault made of it.
            yield self._model.module.get_submodule(name).register_forward_hook(self._hook(name), prepend=True)

    def missed(self) -> list[int]:
        """Faults that were due in a call and did not fire; they are forgotten."""
        found = [due.fault for dues in self._due.values() for due in dues]
        self._due.clear()
        return found

    def begin_pass(self, call: Pass) -> None:
        """This call comes next."""
        self._pass = call
        for number, fault in self._faults.items():
            due = self._due_in(number, fault, call)
            if due.rows:
                self._due.setdefault(self._outputs[number].shown_by, []).append(due)

    def _due_in(self, number: int, fault: Fault, call: Pass) -> Spans:
        if fault.spreads:
            # The head runs for answer tokens only.
            first = FIRST_TOKEN if self._outputs[number].component == "lm_head" else fault.first
            return due_spans(number, max(first, fault.first), fault.trigger.end, self._rows[number], call)
        if not call.first <= fault.first <= call.last:
            return Spans(number, [], [], [])
        due = due_rows(number, fault.entry, self._rows[number], call, call.rows, range(call.start, call.stop))
        return Spans(number, due.rows, due.places, [range(at, at + 1) for at in due.columns])

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

    def _strike(self, due: Spans, output: torch.Tensor) -> None:
        number, fault, site, call = due.fault, self._faults[due.fault], self._outputs[due.fault], self._pass
        assert call is not None
        # The head runs on the last columns of a call only, a projection before it on all of them.
        begin = call.stop - output.shape[1] if site.component == "lm_head" else call.start
        if min(columns.start for columns in due.columns) < begin:
            raise ContractError(f"'{fault}' names a token whose output its pass does not compute")
        self.reached.update(due.rows)
        found = self._found(due, call)
        if not len(found.at):
            return
        index = _elements(site, output, found, begin, call.stop)
        old, number_format = words(output)[index], format_of_words(output.dtype)
        new = corrupt_places(old, fault.corruption, found.places, number_format)
        write(output, index, new, fault)
        kept = KEPT if fault.spreads else len(found.at)
        where = [torch.from_numpy(axis) for axis in (found.rows, found.tokens, *found.inner)]
        named = zip(*(axis[:kept].tolist() for axis in where), strict=True)
        first = tuple(
            Struck(number, site.shown_by, tuple(place), row, *change)
            for (row, *place), change in zip(named, changes(old[:kept], new[:kept], number_format), strict=True)
        )
        if fault.spreads:
            self.struck.append(StruckSet(number, site.shown_by, len(old), digest_of(where, old, new), first))
        else:
            self.struck.extend(first)

    def _found(self, due: Spans, call: Pass) -> _Strike:
        """What a fault strikes in one call: row by row, in each token by token."""
        fault, site = self._faults[due.fault], self._outputs[due.fault]
        first = [call.block.first_column(row) for row in due.rows]
        own = [
            range(columns.start - begin, columns.stop - begin)
            for columns, begin in zip(due.columns, first, strict=True)
        ]
        if due.fault in self._scattered:
            scattered = self._scattered[due.fault]
            parts = [
                scattered.at(tokens, call.block.context_lengths[row] - 1)
                for tokens, row in zip(own, due.rows, strict=True)
            ]
            places = joined(parts)
            tokens, share = scattered.tokens_of(places.values, max(one.stop for one in own))
            inner = _inner(site, tokens, share)
        else:
            assert isinstance(fault.site, ActivationSite)
            parts = [every(np.arange(tokens.start, tokens.stop), fault.corruption) for tokens in own]
            places = joined(parts)
            tokens, inner = places.values, (np.full(len(places.values), fault.site.channel),)
        of = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])
        return _Strike(
            places,
            np.array(due.places)[of],
            np.array(due.rows)[of],
            tokens,
            tokens + np.array(first)[of],
            inner,
        )


def _inner(site: OutputSite | HeadSite, tokens: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where values lie in what tokens have: in which channel; of heads in which one, and in its channel or key."""
    if isinstance(site, OutputSite):
        return (site.rows.locate(share),)
    if site.part in BY_CHANNEL:
        return tuple(np.divmod(share, site.channels))
    first = np.zeros_like(tokens) if site.window is None else np.maximum(0, tokens - site.window + 1)
    head, key = np.divmod(share, tokens + 1 - first)
    return head, first + key


def _elements(site: OutputSite | HeadSite, output: torch.Tensor, found: _Strike, begin: int, stop: int) -> Index:
    """Index of values in an output of the site's layout that holds the columns [begin, stop); int64 arrays, one entry
    for each element."""
    times = found.columns - begin
    if isinstance(site, HeadSite):
        head, inner = found.inner
        if site.part not in BY_CHANNEL:
            # Keys end with the call's own; some may have been let go of.
            inner = found.columns - found.tokens + inner - (stop - output.shape[3])
        axes: tuple[np.ndarray, ...] = (found.at, head, times, inner)
    else:
        (channels,) = found.inner
        head, within = np.divmod(channels, output.shape[-1])
        axes = {
            "btc": (found.at, times, channels),
            "nc": (found.at * (stop - begin) + times, channels),
            "bthc": (found.at, times, head, within),
            "bhtc": (found.at, head, times, within),
        }[site.layout]
    return tuple(torch.from_numpy(axis).to(output.device, non_blocking=True) for axis in axes)
