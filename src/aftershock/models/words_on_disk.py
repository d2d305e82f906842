"""The stored words of a model on disk: every byte of safetensors or a GGUF file, and of the settings beside them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from aftershock.errors import InputError
from aftershock.models.cache import Progress, quiet
from aftershock.models.conversion import first_line, opened
from aftershock.models.demo import pull
from aftershock.models.words import HEADER, NO_TENSOR, WORDS, Extent, TensorWords, as_matrix

_ELEMENT = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of an element of safetensors' types, where more than one."""

_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model's folder that tell how its weights are used."""


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
        total = sum(gap.size for gap in gaps)
        yield as_matrix(path.name + (HEADER if tensors else ""), NO_TENSOR, (total,), total, 1, gaps)


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
    for tensor in sorted(opened(path).tensors, key=lambda one: int(one.data_offset)):
        offset, length = int(tensor.data_offset), int(tensor.n_bytes)
        shape = tuple(int(length) for length in reversed(tensor.shape))
        width = {gguf.GGMLQuantizationType.F32: 4}.get(tensor.tensor_type, 2)
        extent = Extent(path.name, offset, length)
        yield as_matrix(tensor.name, tensor.tensor_type.name, shape, length, width, [extent])
