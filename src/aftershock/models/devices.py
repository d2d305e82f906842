"""Which devices a model lies on: one, or several of one host that share its layers."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from aftershock.errors import InputError


def devices_of(device: str) -> tuple[torch.device, ...]:
    """The devices that a setting names: `cpu`, `cuda`, `cuda:N`, several as in `cuda:0,cuda:1`, or `auto`, every CUDA
    device there is. Inputs go to the first.

    Raises InputError where one of them is not there or is named twice.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        if not count:
            raise InputError("device auto means every CUDA device, and none is here: choose cpu")
        return tuple(torch.device("cuda", number) for number in range(count))
    names = device.split(",")
    matches = [re.fullmatch(r"cuda:(\d+)" if len(names) > 1 else r"cpu|cuda(?::(\d+))?", name) for name in names]
    if not all(matches) or len(set(names)) < len(names):
        raise InputError(
            f"device {device!r} is not supported: choose cpu, cuda, cuda:N, several as in cuda:0,cuda:1, or auto"
        )
    for name, match in zip(names, matches, strict=True):
        if match is not None and name != "cpu" and int(match[1] or 0) >= count:
            raise InputError(f"device {name} is not here ({count} CUDA devices found): choose cpu or another one")
    return tuple(map(torch.device, names))


def share_gpus(place: int, processes: int) -> None:
    """Give this process, number `place` of so many, one of the machine's GPUs and its share of that one's memory.
    Without a GPU nothing is done."""
    count = torch.cuda.device_count()
    if count:
        torch.cuda.set_device(place % count)
        torch.cuda.set_per_process_memory_fraction(1 / -(-processes // count))


def split_over(config: Any, dtype: torch.dtype, devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """A device for every part of a model of that configuration, as transformers takes it for `device_map`.

    The layers go to the devices in their order, runs of about equal bytes; everything else (embeddings, last norm,
    lm_head) goes to the first, so that inputs and logits are in one place.

    Raises InputError where accelerate, which moves tensors between the devices, is not installed.
    """
    if find_spec("accelerate") is None:
        raise InputError("several devices need accelerate, which is not installed here: install aftershock[gpus]")
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    name, layers = next(
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == config.num_hidden_layers
    )
    sizes = [_bytes(layer) for layer in layers]
    numbers = spread(sizes, _bytes(module) - sum(sizes), len(devices))
    outside = dict.fromkeys(_beside(module, name), devices[0])
    return outside | {f"{name}.{layer}": devices[number] for layer, number in enumerate(numbers)}


def spread(sizes: Sequence[int], begun: int, devices: int) -> tuple[int, ...]:
    """A device number for each of some layers in their order, so that every device holds about the same number of
    bytes; the first one holds `begun` bytes besides."""
    total = begun + sum(sizes)
    middles = [start + size / 2 for size, start in zip(sizes, accumulate(sizes, initial=begun), strict=False)]
    return tuple(min(devices - 1, int(devices * middle / total)) for middle in middles)


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _beside(module: torch.nn.Module, name: str) -> list[str]:
    """Paths of the largest parts of a module that neither are nor hold the part `name`."""
    above = {"", *(name[:end] for end, letter in enumerate(name) if letter == ".")}
    paths = [path for path, _ in module.named_modules()]
    return [path for path in paths if path not in above | {name} and path.rpartition(".")[0] in above]
