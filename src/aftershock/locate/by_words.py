"""Compare a suspect model with a clean one, word by word."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from aftershock.errors import InputError
from aftershock.locate.changes import Located, WordChanges, word_changes
from aftershock.models import FileWords, ModelWords, Progress, TensorWords, file_words, parts, quiet, renamed

MOST_LISTED = 10_000
"""Differing words of a tensor that are listed; the others are counted."""

_SAME = MappingProxyType({"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"})
"""Types by which files and live modules call the same words."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """How a suspect differs from its reference.

    `missing` are tensors that only the reference has, `extra` those that only the suspect has, `reshaped` and `retyped`
    those whose shape or type differs, so that their words can't be compared. `differing` counts the words that differ
    in each tensor where some do, and `located` lists them, of each tensor the first `MOST_LISTED`. `compared` is the
    number of tensors whose words were compared, headers and files of settings among them.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reshaped: tuple[str, ...]
    retyped: tuple[str, ...]
    differing: Mapping[str, int]
    located: Located
    compared: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.extra or self.reshaped or self.retyped or self.differing)

    @property
    def comparable(self) -> bool:
        """Whether both have the same tensors of the same shapes and types."""
        return not (self.missing or self.extra or self.reshaped or self.retyped)


def locate_by_words(suspect: ModelWords, reference: ModelWords, progress: Progress = quiet) -> Comparison:
    """Compare two models as words, so that equal NaNs are equal and 0.0 is not -0.0; some 64 MiB of each at a time.

    Tensors are matched by name; what of a model's only file is no tensor is matched whatever the file's name. Files and
    live modules compare with each other where names, shapes and types agree.

    Raises InputError where words can't be read, where two files of a folder have tensors of one name, and where no
    tensor has a namesake of its shape and type.
    """
    own, others = _by_name(suspect), _by_name(reference)
    both = [(own[name], others[name]) for name in own if name in others]
    if not both:
        raise InputError(
            "no tensor of the suspect has the name of one of the reference: they are different models, or one was "
            "converted; give a reference in the same form"
        )
    reshaped = tuple(one.name for one, other in both if one.shape != other.shape)
    retyped = tuple(one.name for one, other in both if one.shape == other.shape and _type(one) != _type(other))
    apart = {*reshaped, *retyped}
    alike = [pair for pair in both if pair[0].name not in apart]
    if not alike and len(both) > 1:
        raise InputError(
            "no tensor that both have is alike in shape and type: the reference is another model; give the clean copy "
            "of the same files"
        )
    counts: dict[str, int] = {}
    changes = []
    progress(f"comparing {sum(one.is_tensor for one, _ in alike):,} tensors")
    for one, other in alike:
        count, listed = _differences(suspect, one, reference, other)
        if count:
            counts[one.name] = count
            changes.append(listed)
    return Comparison(
        tuple(tensor.name for name, tensor in others.items() if name not in own),
        tuple(tensor.name for name, tensor in own.items() if name not in others),
        reshaped,
        retyped,
        counts,
        Located(tuple(changes), ()),
        len(alike),
    )


def _by_name(words: ModelWords) -> dict[str, TensorWords]:
    """Tensors by name; of a model of one file the name of that file does not count."""
    only = f"{next(iter(words.files))}: " if isinstance(words, FileWords) and len(words.files) == 1 else None
    named: dict[str, TensorWords] = {}
    for tensor in words.tensors:
        name = tensor.name.removeprefix(only or "")
        if name in named:
            raise InputError(
                f"{' and '.join(one.extents[0].file for one in (named[name], tensor))} both hold a tensor {name}: the "
                "folder has more than one model; compare one file with one file, or move the others away"
            )
        named[name] = tensor
    return named


def _type(tensor: TensorWords) -> tuple[str, int]:
    return _SAME.get(tensor.format, tensor.format.lower()), tensor.size


def _differences(
    suspect: ModelWords, one: TensorWords, reference: ModelWords, other: TensorWords
) -> tuple[int, WordChanges]:
    """How many words of a tensor differ, and the first of them."""
    count, listed, found = 0, 0, [np.empty((4, 0), np.int64)]
    for (first, now), (_, clean) in zip(parts(suspect, one), parts(reference, other), strict=True):
        clean = clean.to(now.device)
        if torch.equal(now, clean):
            continue
        places = torch.nonzero(now != clean)
        count += len(places)
        rows, columns = places[: MOST_LISTED - listed].T
        listed += len(rows)
        these = (rows + first, columns, now[rows, columns], clean[rows, columns])
        found.append(np.stack([array.long().cpu().numpy() for array in these]))
    return count, word_changes(one, *np.concatenate(found, axis=1))


def suspect_words(spec: str, reference: FileWords, progress: Progress = quiet) -> FileWords:
    """The words of a model on disk, read as the reference's are where its files have the same names and sizes (the name
    of a model's only file does not count), so that damage in a file's own table does not hinder; else as `file_words`.

    Raises InputError as `file_words` does.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        names = {name: name for name in reference.files}
        others = {file.name for file in path.glob("*.safetensors")} - names.keys()
    else:
        names = dict(zip(reference.files, [path.name], strict=False))
        others = reference.files.keys() - names.keys()
    folder = path if path.is_dir() else path.parent
    if others or any(_size(folder / own) != reference.files[name] for name, own in names.items()):
        return file_words(spec, progress)
    files = {own: reference.files[name] for name, own in names.items()}
    return FileWords(folder, files, tuple(renamed(reference.tensors, names)))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
