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
class _Round:
    """Faulty words of one parameter, and the outputs that they change: `rows[i]`, `channels[i]` is one of them."""

    tensor: torch.Tensor
    index: tuple[torch.Tensor, ...]
    new: torch.Tensor
    rows: torch.Tensor
    channels: torch.Tensor


@contextmanager
def row_faults(model: LoadedModel, faults: Mapping[Sequence[int], Sequence[Fault]]) -> Iterator[None]:
    """Inside, each set of weight faults (its trigger plays no part) acts on its own rows of every forward call.

    A module whose parameters are faulty runs twice: on clean words, and with the faulty words of all sets in place.
    A faulty word changes one channel of its module's output, so each row takes from the second run the channels
    that its own faults change. That is bit for bit what a run under one set alone gives, since neither a row nor a
    channel of a kernel of one shape depends on the others; sets that change the same channel get runs of their own.

    Raises InputError for faults in parameters that change more than one channel (experts), and ContractError when a
    word could not be written or written back.
    """
    by_parameter: dict[str, list[tuple[Sequence[int], list[Fault]]]] = {}
    for rows, those in faults.items():
        for fault in those:
            assert isinstance(fault.site, WeightSite)
            of_parameter = by_parameter.setdefault(fault.site.parameter, [])
            if not of_parameter or of_parameter[-1][0] is not rows:
                of_parameter.append((rows, []))
            of_parameter[-1][1].append(fault)
    users = _users(model.module)
    with ExitStack() as hooks:
        rounds: dict[torch.nn.Module, list[_Round]] = {}
        for name, sets in by_parameter.items():
            parameter = model.module.get_parameter(name)
            for module in users[parameter]:
                rounds.setdefault(module, []).extend(_rounds(module, parameter.detach(), sets))
        for module, of_module in rounds.items():
            hooks.callback(module.register_forward_hook(_merged(of_module), with_kwargs=True).remove)
        yield


def changes_one_channel(model: LoadedModel, fault: Fault) -> bool:
    """Whether a weight fault is one that `row_faults` can take."""
    assert isinstance(fault.site, WeightSite)
    parameter = model.module.get_parameter(fault.site.parameter)
    return all(_channel_dim(module, parameter) is not None for module in _users(model.module)[parameter])


def _users(module: torch.nn.Module) -> dict[torch.nn.Parameter, list[torch.nn.Module]]:
    """The modules that hold each parameter themselves (several where it is tied)."""
    users: dict[torch.nn.Parameter, list[torch.nn.Module]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            users.setdefault(parameter, []).append(part)
    return users


def _channel_dim(module: torch.nn.Module, parameter: torch.Tensor) -> int | None:
    """Dimension of the parameter that numbers the channels of the module's output; None where there is none."""
    if parameter.dim() == 1:
        return 0
    if isinstance(module, torch.nn.Linear):
        return 0
    if isinstance(module, Conv1D | torch.nn.Embedding):
        return 1
    return None


def _rounds(
    module: torch.nn.Module, tensor: torch.Tensor, sets: Sequence[tuple[Sequence[int], list[Fault]]]
) -> list[_Round]:
    """The sets dealt out into runs in which no two sets change the same channel."""
    dim = _channel_dim(module, tensor)
    if dim is None:
        raise InputError(f"'{sets[0][1][0]}' changes more than one channel of its module: run it as a trial of its own")
    dealt: list[tuple[set[int], list[tuple[Sequence[int], list[Fault]]]]] = []
    for rows, faults in sets:
        channels = {fault.site.index[dim] for fault in faults if isinstance(fault.site, WeightSite)}
        taken, members = next((one for one in dealt if one[0].isdisjoint(channels)), (set(), []))
        if not members:
            dealt.append((taken, members))
        taken |= channels
        members.append((rows, faults))
    return [_round(tensor, members, dim) for _, members in dealt]


def _round(tensor: torch.Tensor, members: Sequence[tuple[Sequence[int], list[Fault]]], dim: int) -> _Round:
    stored, number_format = words(tensor), format_of(tensor.dtype)
    # Faults on one word act one after the other.
    new: dict[tuple[int, ...], torch.Tensor] = {}
    rows: list[int] = []
    channels: list[int] = []
    for of_set, faults in members:
        for fault in faults:
            assert isinstance(fault.site, WeightSite)
            index = fault.site.index
            old = new.get(index, stored[index])
            new[index] = corrupt(old.reshape(1), [fault.corruption], number_format)[0]
        changed = sorted({fault.site.index[dim] for fault in faults if isinstance(fault.site, WeightSite)})
        rows += [row for row in of_set for _ in changed]
        channels += changed * len(of_set)

    def on_device(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, device=tensor.device)

    return _Round(
        tensor, on_device(list(new)).unbind(1), torch.stack(list(new.values())), on_device(rows), on_device(channels)
    )


def _merged(rounds: Sequence[_Round]) -> Callable[..., None]:
    def run_again(module: torch.nn.Module, inputs: Any, keywords: Any, output: torch.Tensor) -> None:
        for one in rounds:
            with _written(one):
                faulty = module.forward(*inputs, **keywords)
            output[one.rows, ..., one.channels] = faulty[one.rows, ..., one.channels]

    return run_again


@contextmanager
def _written(one: _Round) -> Iterator[None]:
    stored = words(one.tensor)
    old = stored[one.index]
    stored[one.index] = one.new
    try:
        if not torch.equal(stored[one.index], one.new):
            raise ContractError("a faulty word could not be written")
        yield
    finally:
        stored[one.index] = old
        if not torch.equal(stored[one.index], old):
            raise ContractError("an undo did not restore its words")
