"""The stored words of a model where they lie: in files (`FileWords`) or in a live module.

A tensor is read as a matrix of words, a few rows at a time, so that a model of any size can be gone through.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Protocol

import torch

from aftershock.errors import InputError

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""Integer type of a word by its bytes."""

NO_TENSOR = "bytes"
"""Format of what is no tensor: a file's header, a file of settings."""

HEADER = ": header"
"""What follows the name of a file in that of its header."""

_PART = 1 << 26
"""Bytes read in one go."""

_SQUARE_BELOW = 64
"""A tensor whose rows or columns are fewer is read as a square, which has fewer lines."""


@dataclass(frozen=True)
class Extent:
    """`size` bytes of a file from `offset` on; `file` is its name in the model's folder."""

    file: str
    offset: int
    size: int


@dataclass(frozen=True)
class TensorWords:
    """How the words of one tensor are read: `rows` x `columns` words of `width` bytes, row by row, in little-endian
    order, the last row filled up with zeros where need be.

    `format` names what the words are (`bfloat16`, `Q4_1`, ...; `NO_TENSOR` for a file's header or a file of
    settings), `shape` the tensor's own. `extents` are the bytes in files, in order; none for a live module.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    size: int
    rows: int
    columns: int
    width: int
    extents: tuple[Extent, ...] = ()

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor, and not a file's header or a file of settings."""
        return self.format != NO_TENSOR

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.width

    @property
    def filled(self) -> int:
        """Number of words that are the tensor's own."""
        return -(-self.size // self.width)

    def place(self, row: int, column: int) -> tuple[str, int]:
        """File and offset in it of a word's first byte. Raises InputError past the tensor's end."""
        left = row * self.row_bytes + column * self.width
        for extent in self.extents:
            if left < extent.size:
                return extent.file, extent.offset + left
            left -= extent.size
        raise InputError(f"{self.name} has no word [{row}, {column}] in a file")


class ModelWords(Protocol):
    """Something whose words can be read: files or a live module."""

    @property
    def tensors(self) -> tuple[TensorWords, ...]:
        """All that can be read, in the order of the files or of the module."""

    def read(self, tensor: TensorWords, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of one of them: shape (last - first, columns), of the type `WORDS` has for its width."""


def parts(words: ModelWords, tensor: TensorWords) -> Iterator[tuple[int, torch.Tensor]]:
    """All rows of a tensor, some 64 MiB at a time: number of the first row, and the rows."""
    step = max(1, _PART // max(1, tensor.row_bytes))
    for first in range(0, tensor.rows, step):
        yield first, words.read(tensor, first, min(first + step, tensor.rows))


def as_matrix(
    name: str, form: str, shape: tuple[int, ...], size: int, width: int, extents: Sequence[Extent] = ()
) -> TensorWords:
    """The rows and columns of a tensor of `size` bytes: its own where they are many, else those of a square."""
    count = -(-size // width)
    rows = math.prod(shape[:-1])
    if len(shape) < 2 or rows == 0 or size % (rows * width) or min(rows, count // rows) < _SQUARE_BELOW:
        columns = max(1, math.isqrt(max(count - 1, 0)) + 1)
        rows = -(-count // columns)
    else:
        columns = count // rows
    return TensorWords(name, form, shape, size, rows, columns, width, tuple(extents))


def renamed(tensors: Iterable[TensorWords], names: Mapping[str, str]) -> Iterator[TensorWords]:
    """The same where files have other names (`names`, by the old ones): what is no tensor is named after its file."""
    for tensor in tensors:
        extents = tuple(replace(extent, file=names.get(extent.file, extent.file)) for extent in tensor.extents)
        file = tensor.name.removesuffix(HEADER)
        name = tensor.name if tensor.is_tensor else names.get(file, file) + tensor.name.removeprefix(file)
        yield replace(tensor, name=name, extents=extents)


@dataclass(frozen=True)
class LiveWords:
    """The words of a module's parameters and buffers, on any device; a tied tensor is there once."""

    module: torch.nn.Module
    tensors: tuple[TensorWords, ...]

    def tensor(self, name: str) -> torch.Tensor:
        """The live tensor of a name. Raises InputError where there is none, or it holds no words (on `meta`)."""
        try:
            tensor: torch.Tensor = attrgetter(name)(self.module)
        except AttributeError as error:
            raise InputError(
                f"the module has no tensor {name}: it is not the one that the words were listed of"
            ) from error
        if tensor.is_meta:
            raise InputError(f"tensor {name} of the module is on the meta device and holds no words: load its weights")
        return tensor

    def read(self, tensor: TensorWords, first: int, last: int) -> torch.Tensor:
        """As `ModelWords.read`: a view of the live tensor where it is contiguous and its last row is full."""
        flat = self.tensor(tensor.name).detach().reshape(-1).view(torch.uint8)
        begin, end = first * tensor.row_bytes, last * tensor.row_bytes
        held = flat[begin : min(end, tensor.size)]
        if end > tensor.size:
            held = torch.nn.functional.pad(held, (0, end - tensor.size))
        return held.view(WORDS[tensor.width]).view(last - first, tensor.columns)


def live_words(module: torch.nn.Module, buffers: Collection[str] = ()) -> LiveWords:
    """The words of a live module's parameters and persistent buffers, CPU or CUDA, of any dtype.

    A forward may rewrite non-persistent buffers (rotary embeddings that scale with the length do), which is no
    corruption: of those only the ones named in `buffers` are listed. Raises InputError for a name that is no buffer.
    """
    there = dict(module.named_buffers())
    if unknown := set(buffers) - there.keys():
        raise InputError(f"the module has no buffer {min(unknown)}: give names as named_buffers() has them")
    listed = {*buffers, *module.state_dict()}
    kept = ((name, buffer) for name, buffer in there.items() if name in listed)
    found = []
    for name, tensor in chain(module.named_parameters(), kept):
        width = tensor.element_size() if tensor.element_size() in WORDS else 4
        form = str(tensor.dtype).removeprefix("torch.")
        found.append(as_matrix(name, form, tuple(tensor.shape), tensor.nbytes, width))
    return LiveWords(module, tuple(found))
