"""Errors in a GGUF file, in place, as a converter would leave them: metadata, and the words of tensors.

Rows are blocks of words of a packed format, one row an output channel; edits that only move or repeat rows hold for any
format, others name the one that they know. The package gguf is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.plants.weight_edits import EDITS

Reader = Any
"""gguf.GGUFReader of a file that is open for writing."""

_MOVING = frozenset(
    ("to_interleaved", "to_halves", "order_heads", "interleave_shards", "repeat_shard", "repeat_rows", "roll_rows")
)
_Q4_1 = np.dtype([("step", "<f2"), ("least", "<f2"), ("levels", "u1", (16,))])
"""A block of 32 words of format Q4_1: value = step * level + least (ggml's block_q4_1)."""


def set_metadata(reader: Reader, key: str, value: float | int) -> None:
    """A number or a truth value of the metadata. Raises KeyError for a key that the file lacks."""
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value


def edit_tensor(reader: Reader, tensor: str, edit: str, layers: Sequence[int] | str = "all", **parameters: Any) -> None:
    """A tensor is edited (`EDITS`): rows are moved in any format, values are changed in float32 alone."""
    for found in _tensors(reader, tensor, layers):
        if edit not in _MOVING and found.data.dtype != np.float32:
            raise ValueError(f"{found.name} is packed: {edit} needs float32")
        found.data[:] = EDITS[edit](torch.from_numpy(found.data.copy()), **parameters).numpy()


def edit_blocks(
    reader: Reader, tensor: str, layers: Sequence[int] | str = "all", factor: float = 1.0, steps: float = 0.0
) -> None:
    """Blocks of a Q4_1 tensor: steps and least values times a factor, and least values some steps higher."""
    for found in _tensors(reader, tensor, layers):
        blocks: npt.NDArray[Any] = found.data.view(_Q4_1)
        blocks["least"] = blocks["least"] * factor + blocks["step"] * factor * steps
        blocks["step"] = blocks["step"] * factor


def swap_tensors(reader: Reader, tensor: str, layers: Sequence[int]) -> None:
    """Two layers take each other's tensor."""
    first, second = _tensors(reader, tensor, layers)
    words = first.data.copy()
    first.data[:] = second.data
    second.data[:] = words


def _tensors(reader: Reader, name: str, layers: Sequence[int] | str) -> list[Any]:
    """Tensors of that name, in every layer where it has `{layer}`. Raises ValueError where there is none."""
    found = {one.name: one for one in reader.tensors}
    numbers = range(len(found)) if layers == "all" else layers
    chosen = dict.fromkeys(name.format(layer=number) for number in numbers)
    tensors = [found[one] for one in chosen if one in found]
    if not tensors:
        raise ValueError(f"the file has no tensor {name} in layers {layers}")
    return tensors


OPERATIONS: Mapping[str, Callable[..., None]] = {
    each.__name__: each for each in (set_metadata, edit_tensor, edit_blocks, swap_tensors)
}
"""Operations on a file, by name."""
