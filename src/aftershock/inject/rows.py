"""Weight faults of several trials on one model at once, each present for its own rows only."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault, WeightSite
from aftershock.inject.corrupt import corrupt
from aftershock.models import LoadedModel
from aftershock.numerics import format_of, words


@dataclass(frozen=True)
class _Words:
    """Faulty words of one parameter."""

    tensor: torch.Tensor
    index: tuple[torch.Tensor, ...]
    old: torch.Tensor
    new: torch.Tensor


@dataclass(frozen=True)
class _Round:
    """Faulty words of one module, and the outputs that they change: `rows[i]`, `channels[i]` is one of them."""

    words: tuple[_Words, ...]
    rows: torch.Tensor
    channels: torch.Tensor


@dataclass(frozen=True)
class _Placed:
    """A weight fault in a module that uses its parameter, and the channel of the output that it changes there."""

    fault: Fault
    site: WeightSite
    tensor: torch.Tensor
    channel: int


_Seen = list[tuple[torch.Tensor, torch.Tensor]]
"""Words found and words expected."""

_Sets = Mapping[tuple[int, ...], Sequence[_Placed]]


@contextmanager
def row_faults(model: LoadedModel, faults: Mapping[tuple[int, ...], Sequence[Fault]], rows: int) -> Iterator[None]:
    """Inside, each set of weight faults (its trigger plays no part) acts on its own rows of every forward call.

    Every forward call has `rows` rows.

    A module whose parameters are faulty runs twice: on clean words, and with the faulty words of all sets in place.
    A faulty word changes one channel of its module's output, so each row takes from the second run the channels
    that its own faults change. That is bit for bit what a run under one set alone gives, since neither a row nor a
    channel of a kernel of one shape depends on the others; sets that change the same channel get runs of their own.

    Raises InputError for faults in parameters that change more than one channel (experts), and ContractError when a
    word could not be written or written back: written words are looked at in each module's first call, which the others
    repeat, and all of them at the end.
    """
    placed: dict[torch.nn.Module, dict[tuple[int, ...], list[_Placed]]] = {}
    for own, those in faults.items():
        for fault in those:
            for module, one in _places(model, fault):
                placed.setdefault(module, {}).setdefault(own, []).append(one)
    seen: _Seen = []
    faulty: list[_Words] = []
    with ExitStack() as hooks:
        for module, sets in placed.items():
            rounds = [_round(dealt) for dealt in _dealt(sets)]
            faulty += [one for each in rounds for one in each.words]
            again = _merged(rounds, rows, seen)
            # Before any other: what those change in the output stays.
            hooks.callback(module.register_forward_hook(again, prepend=True, with_kwargs=True).remove)
        yield
    _require_equal([*seen, *((words(one.tensor)[one.index], one.old) for one in faulty)])


def changes_one_channel(model: LoadedModel, fault: Fault) -> bool:
    """Whether a weight fault is one that `row_faults` can take."""
    if not isinstance(fault.site, WeightSite):
        return False
    parameter = model.module.get_parameter(fault.site.parameter)
    return all(_channel_dim(module, parameter) is not None for module in model.parameter_users[parameter])


def _places(model: LoadedModel, fault: Fault) -> Iterator[tuple[torch.nn.Module, _Placed]]:
    site = fault.site
    assert isinstance(site, WeightSite)
    parameter = model.module.get_parameter(site.parameter)
    for module in model.parameter_users[parameter]:
        dim = _channel_dim(module, parameter)
        if dim is None:
            raise InputError(f"'{fault}' changes more than one channel of its module: run it as a trial of its own")
        yield module, _Placed(fault, site, parameter.detach(), site.index[dim])


def _channel_dim(module: torch.nn.Module, parameter: torch.Tensor) -> int | None:
    """Dimension of the parameter that numbers the channels of the module's output; None where there is none."""
    if parameter.dim() == 1:
        return 0
    if isinstance(module, torch.nn.Linear):
        return 0
    if isinstance(module, Conv1D | torch.nn.Embedding):
        return 1
    return None


def _dealt(sets: _Sets) -> list[_Sets]:
    """The sets dealt out into runs in which no two change the same channel."""
    runs: list[tuple[set[int], dict[tuple[int, ...], Sequence[_Placed]]]] = []
    for rows, placed in sets.items():
        channels = {one.channel for one in placed}
        run = next((run for run in runs if run[0].isdisjoint(channels)), None)
        if run is None:
            run = (set(), {})
            runs.append(run)
        run[0].update(channels)
        run[1][rows] = placed
    return [members for _, members in runs]


def _round(sets: _Sets) -> _Round:
    by_tensor: dict[str, list[_Placed]] = {}
    for one in (one for placed in sets.values() for one in placed):
        by_tensor.setdefault(one.site.parameter, []).append(one)
    changed = [(row, one.channel) for rows, placed in sets.items() for row in rows for one in placed]
    device = next(iter(sets.values()))[0].tensor.device
    rows, channels = torch.tensor(changed).to(device, non_blocking=True).unbind(1)
    return _Round(tuple(map(_words, by_tensor.values())), rows, channels)


def _words(placed: Sequence[_Placed]) -> _Words:
    """Faulty words of one tensor; faults on one word act one after the other."""
    tensor = placed[0].tensor
    stored, number_format = words(tensor), format_of(tensor.dtype)
    new: dict[tuple[int, ...], torch.Tensor] = {}
    for one in placed:
        old = new.get(one.site.index, stored[one.site.index])
        new[one.site.index] = corrupt(old.reshape(1), [one.fault.corruption], number_format)[0]
    index = torch.tensor(list(new)).to(tensor.device, non_blocking=True).unbind(1)
    return _Words(tensor, index, stored[index], torch.stack(list(new.values())))


def _merged(rounds: Sequence[_Round], rows: int, seen: _Seen) -> Callable[..., None]:
    def by_row(output: torch.Tensor) -> torch.Tensor:
        # Some models flatten rows and tokens before they project.
        return output if output.shape[0] == rows else output.view(rows, -1, output.shape[-1])

    # Every call does the same: the words are looked at in the first.
    unseen = list(rounds)

    def run_again(module: torch.nn.Module, inputs: Any, keywords: Any, output: torch.Tensor) -> None:
        for one in rounds:
            with ExitStack() as written:
                for faulty in one.words:
                    written.enter_context(_written(faulty))
                again = module.forward(*inputs, **keywords)
                if unseen:
                    seen.extend((words(faulty.tensor)[faulty.index], faulty.new) for faulty in unseen.pop(0).words)
            by_row(output)[one.rows, ..., one.channels] = by_row(again)[one.rows, ..., one.channels]

    return run_again


@contextmanager
def _written(faulty: _Words) -> Iterator[None]:
    stored = words(faulty.tensor)
    stored[faulty.index] = faulty.new
    try:
        yield
    finally:
        stored[faulty.index] = faulty.old


def _require_equal(seen: _Seen) -> None:
    """Raise ContractError unless all words were found as they had been written. At the end, since a comparison makes
    the host wait for the device."""
    by_device: dict[torch.device, _Seen] = {}
    for found, expected in seen:
        by_device.setdefault(found.device, []).append((found, expected))
    for pairs in by_device.values():
        found, expected = (torch.cat(side) for side in zip(*pairs, strict=True))
        if not torch.equal(found, expected):
            raise ContractError("a faulty word could not be written, or not be written back")
