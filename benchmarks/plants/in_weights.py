"""Errors in the tensors of a live torch model, in place: so a loader or converter would have left them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.plants.places import Layers
from benchmarks.plants.weight_edits import EDITS


def edit_weight(
    model: Any,
    tensor: str,
    edit: str,
    layers: Layers = "all",
    rows: tuple[int, int] | None = None,
    expert: int | None = None,
    **parameters: Any,
) -> None:
    """A tensor is edited (`EDITS`), in every layer where its name has `{layer}`: all of it, or its rows from the first
    to before the second of `rows` (a component's part of a fused tensor), or one expert's part."""
    edited = partial(EDITS[edit], **parameters)
    for parameter in _parameters(model, tensor, layers):
        part = parameter if expert is None else parameter[expert]
        part = part if rows is None else part[slice(*rows)]
        part.copy_(edited(part.clone()))


def swap_weights(model: Any, tensor: str, with_tensor: str, layers: Layers = "all") -> None:
    """Two tensors of one shape take each other's words, layer by layer."""
    for first, second in zip(_parameters(model, tensor, layers), _parameters(model, with_tensor, layers), strict=True):
        words = first.clone()
        first.copy_(second)
        second.copy_(words)


def swap_layers(model: Any, tensor: str, layers: tuple[int, int]) -> None:
    """Two layers take each other's tensor."""
    first, second = _parameters(model, tensor, layers)
    words = first.clone()
    first.copy_(second)
    second.copy_(words)


def copy_weight(model: Any, tensor: str, source: str) -> None:
    """A tensor takes the words of another of the same shape."""
    model.get_parameter(tensor).copy_(model.get_parameter(source))


def swap_rows(model: Any, tensor: str, rows: tuple[int, int], with_rows: tuple[int, int], layers: Layers) -> None:
    """Two parts of a fused tensor, as many rows each, take each other's words."""
    for parameter in _parameters(model, tensor, layers):
        words = parameter[slice(*rows)].clone()
        parameter[slice(*rows)] = parameter[slice(*with_rows)]
        parameter[slice(*with_rows)] = words


def _parameters(model: Any, tensor: str, layers: Layers) -> list[torch.Tensor]:
    if "{layer}" not in tensor:
        return [model.get_parameter(tensor)]
    numbers: Sequence[int] = range(model.config.num_hidden_layers) if layers == "all" else layers
    return [model.get_parameter(tensor.format(layer=number)) for number in numbers]
