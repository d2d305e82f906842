"""The stored words of a model where they lie: in safetensors, in a GGUF file, in a live module.

A tensor is read as a matrix of words, a few rows at a time, so that a model of any size can be gone through.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import gguf
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from aftershock.errors import InputError
from aftershock.models.cache import Progress, quiet
from aftershock.models.conversion import first_line
from aftershock.models.demo import pull

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""Integer type of a word by its bytes."""

_PART = 1 << 26
"""Bytes read in one go."""

_SQUARE_BELOW = 64
"""A tensor whose rows or columns are fewer is read as a square, which has fewer lines."""

_ELEMENT = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of an element of safetensors' types, where more than one."""

_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model's folder that tell how its weights are used."""


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

    `format` names what the words are (`bfloat16`, `Q4_1`, ...; `bytes` for what is no tensor: a file's header, a file
    of settings), `shape` the tensor's own. `extents` are the bytes in files, in order; none for a live module.
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


@dataclass(frozen=True)
class FileWords:
    """The words of the files in a folder; `files` are those that the model is made of, with their sizes in bytes."""

    folder: Path
    files: dict[str, int]
    tensors: tuple[TensorWords, ...]

    def read(self, tensor: TensorWords, first: int, last: int) -> torch.Tensor:
        """As `ModelWords.read`. Raises InputError where a file can't be read or ends too early."""
        begin, end = first * tensor.row_bytes, min(last * tensor.row_bytes, tensor.size)
        held = torch.zeros((last - first) * tensor.row_bytes, dtype=torch.uint8)
        filled, start = 0, 0
        for extent in tensor.extents:
            low, high = max(begin, start), min(end, start + extent.size)
            if low < high:
                _fill(
                    held[filled : filled + high - low].numpy(), self.folder / extent.file, extent.offset + low - start
                )
                filled += high - low
            start += extent.size
        return held.view(WORDS[tensor.width]).view(last - first, tensor.columns)


def _fill(target: np.ndarray, path: Path, offset: int) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            view = target.data
            while len(view) and (count := file.readinto(view)):
                view = view[count:]
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): check the file and its permissions") from error
    if len(view):
        raise InputError(f"{path} ends {len(view):,} bytes too early: it was cut short, copy or download it again")


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


def _live(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def live_words(module: torch.nn.Module) -> LiveWords:
    """The words of a live module, CPU or CUDA, of any dtype."""
    found = []
    for name, tensor in _live(module):
        width = tensor.element_size() if tensor.element_size() in WORDS else 4
        form = str(tensor.dtype).removeprefix("torch.")
        found.append(as_matrix(name, form, tuple(tensor.shape), tensor.nbytes, width))
    return LiveWords(module, tuple(found))


def file_words(spec: str, progress: Progress = quiet) -> FileWords:
    """The words of a model on disk: `demo:NAME`, a `.gguf` file, a `.safetensors` file, or a folder with safetensors,
    with the files of settings beside them. Every byte of every file belongs to one of its `tensors`.

    Raises InputError for a model that is missing, cut short or damaged in what tells where its tensors lie.
    """
    return _of_files(model_files(spec, progress))


def model_files(spec: str, progress: Progress = quiet) -> tuple[Path, ...]:
    """The files that a model on disk is made of, all in one folder: its weights, then its files of settings.

    Raises InputError for a model that is missing. Nothing is read.
    """
    demo = spec.startswith("demo:")
    path = pull(spec.removeprefix("demo:"), progress) if demo else Path(spec).expanduser()
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            raise InputError(f"{path} holds no .safetensors file: give a folder with the model's weights, or a .gguf")
        beside = sorted({file for pattern in _BESIDE for file in path.glob(pattern) if file.is_file()})
        return (*weights, *beside)
    if path.suffix.lower() not in (".gguf", ".safetensors") or not path.is_file():
        what = "is no model file" if path.is_file() else "does not exist"
        raise InputError(f"model {spec} {what}: give demo:NAME, a folder, a .safetensors or a .gguf file")
    return (path,)


def _of_files(paths: Sequence[Path]) -> FileWords:
    readers = {".gguf": _gguf_tensors, ".safetensors": _safetensors}
    found: list[TensorWords] = []
    for path in paths:
        reader = readers.get(path.suffix.lower())
        tensors = list(reader(path)) if reader else []
        found += [*tensors, *_rest(path, tensors)]
    return FileWords(paths[0].parent, {path.name: path.stat().st_size for path in paths}, tuple(found))


def _rest(path: Path, tensors: Sequence[TensorWords]) -> Iterator[TensorWords]:
    """What of a file is no tensor's: its header, and the bytes between tensors."""
    size, at, gaps = path.stat().st_size, 0, []
    for extent in sorted((extent for tensor in tensors for extent in tensor.extents), key=lambda one: one.offset):
        if extent.offset > at:
            gaps.append(Extent(path.name, at, extent.offset - at))
        at = extent.offset + extent.size
    if at < size:
        gaps.append(Extent(path.name, at, size - at))
    if gaps:
        name = f"{path.name}: header" if tensors else path.name
        total = sum(gap.size for gap in gaps)
        yield as_matrix(name, "bytes", (total,), total, 1, gaps)


def _safetensors(path: Path) -> Iterator[TensorWords]:
    try:
        with safe_open(path, framework="np"):
            pass  # the library checks the table against the file's size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            table = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or cut short ({first_line(error)}): copy or download it again") from error
    table.pop("__metadata__", None)
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        width = min(_ELEMENT.get(entry["dtype"], 1), 4)
        extent = Extent(path.name, 8 + length + begin, end - begin)
        yield as_matrix(name, entry["dtype"], tuple(entry["shape"]), end - begin, width, [extent])


def _gguf_tensors(path: Path) -> Iterator[TensorWords]:
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # a damaged file makes the reader raise whatever comes
        raise InputError(
            f"{path} cannot be read as a GGUF model ({first_line(error)}): it is damaged or cut short, get it again"
        ) from error
    size = path.stat().st_size
    for tensor in sorted(reader.tensors, key=lambda one: int(one.data_offset)):
        offset, length = int(tensor.data_offset), int(tensor.n_bytes)
        if offset + length > size:
            raise InputError(
                f"{path} ends {offset + length - size:,} bytes before its tensor {tensor.name} does: "
                "it was cut short, copy or download it again"
            )
        shape = tuple(int(length) for length in reversed(tensor.shape))
        width = {gguf.GGMLQuantizationType.F32: 4}.get(tensor.tensor_type, 2)
        extent = Extent(path.name, offset, length)
        yield as_matrix(tensor.name, tensor.tensor_type.name, shape, length, width, [extent])
