"""Put the clean words back into files, by way of copies that are proved first."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from tempfile import TemporaryDirectory

from aftershock.detect import file_digest, hasher
from aftershock.errors import InputError
from aftershock.locate.by_words import Comparison
from aftershock.locate.changes import Located
from aftershock.models import FileWords

_ANOTHER = 0.01
"""Share of differing words above which a reference whose tensors mostly differ is another model."""


@dataclass(frozen=True)
class Repaired:
    """The files that were written, each proved to be the clean one, and the number of words put back."""

    files: tuple[Path, ...]
    words: int


def repair_files(
    words: FileWords,
    located: Located,
    digests: Mapping[str, str],
    target: Path | None = None,
    key: bytes | None = None,
) -> Repaired:
    """Write the clean words into the files of a model, in place or as a whole model in the folder `target`.

    Every file is copied beside its place, mended there, brought to the disk and hashed; only when the BLAKE3 of each is
    that in `digests` (hexadecimal, by file name; keyed where `key` is given) do the copies take their places. Until
    then the corrupted files stay as they are, whatever goes wrong; what was begun is removed, and a second run starts
    anew. In place, only files with changes are written.

    Raises InputError where tensors are ambiguous, where a file mended is not the clean one, and where the disk refuses.
    """
    if located.ambiguous:
        names = ", ".join(one.tensor.name for one in located.ambiguous[:5])
        raise InputError(
            f"the changed words of {names} can't be told: repair from a reference (--reference), or get the file again"
        )
    patches: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for name, offset, data in _patches(located):
        patches[name].append((offset, data))

    def fill(name: str, path: Path) -> None:
        shutil.copyfile(words.folder / name, path)
        with path.open("r+b") as file:
            for offset, data in patches.get(name, ()):
                file.seek(offset)
                file.write(data)

    files = _replace(words, set(patches), fill, lambda name: digests[name], target, key)
    return Repaired(files, sum(len(changes) for changes in located.changes))


def patch_files(words: FileWords, located: Located, target: Path | None = None) -> Repaired:
    """The same where no digest of the clean files is known: each copy is proved to be the file with these words put
    back, and nothing else changed."""
    patches: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for name, offset, data in _patches(located):
        patches[name].append((offset, data))
    digests = {name: _patched_digest(words.folder / name, patches.get(name, ())) for name in words.files}
    return repair_files(words, located, digests, target)


def _patched_digest(path: Path, patches: Iterable[tuple[int, bytes]]) -> str:
    """BLAKE3 of a file as it would be with some bytes replaced; the file stays as it is."""
    hashed = hasher(None)
    if path.stat().st_size:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_COPY) as held:
            for offset, data in patches:
                held[offset : offset + len(data)] = data
            hashed.update(held)
    return str(hashed.hexdigest())


def restore_files(
    words: FileWords, comparison: Comparison, reference: FileWords, target: Path | None = None
) -> Repaired:
    """Copy from the reference the files in which words differ, with the same care as `repair_files`.

    The reference's files must have the suspect's names and sizes (the name of a model's only file does not count).
    Raises InputError where they have not, where more than half of the tensors and 1 % of the words differ, as they do
    in another model, and where the disk refuses.
    """
    names = dict(zip(words.files, reference.files, strict=False))
    if not comparison.comparable or list(words.files.values()) != list(reference.files.values()):
        raise InputError(
            "the reference has other tensors or other files than the suspect: give the clean copy of the same files"
        )
    differ, count = sum(comparison.differing.values()), sum(tensor.filled for tensor in words.tensors)
    if 2 * len(comparison.differing) > comparison.compared and differ > _ANOTHER * count:
        raise InputError(
            f"{differ:,} of {count:,} words differ from the reference: it is another model, not this one undamaged; "
            "copy its files if you want them"
        )
    tensors = (tensor for tensor in words.tensors if tensor.name in comparison.differing)
    changed = {extent.file for tensor in tensors for extent in tensor.extents}

    def source(name: str) -> Path:
        return reference.folder / names[name]

    def fill(name: str, path: Path) -> None:
        shutil.copyfile(source(name), path)

    files = _replace(words, changed, fill, lambda name: file_digest(source(name)), target, None)
    return Repaired(files, differ)


def _patches(located: Located) -> Iterator[tuple[str, int, bytes]]:
    """File, offset and bytes of each clean word."""
    for changes in located.changes:
        tensor = changes.tensor
        places = (array.tolist() for array in (changes.rows, changes.columns, changes.clean))
        for row, column, word in zip(*places, strict=True):
            file, offset = tensor.place(row, column)
            last = tensor.size - (row * tensor.columns + column) * tensor.width
            yield file, offset, word.to_bytes(tensor.width, "little")[:last]


def _replace(
    words: FileWords,
    changed: set[str],
    fill: Callable[[str, Path], None],
    digest: Callable[[str], str],
    target: Path | None,
    key: bytes | None,
) -> tuple[Path, ...]:
    """Have the files filled beside their places, prove them all, then put them there."""
    whole = target is not None and target.resolve() != words.folder.resolve()
    folder = words.folder if target is None else target
    names = [name for name in words.files if whole or name in changed]
    if whole:
        _check_empty(words, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            staged: dict[Path, Path] = {}
            for name in names:
                # A link, as the hub's cache has them, stays: what it leads to is replaced.
                place = (folder / name).resolve()
                beside = stack.enter_context(TemporaryDirectory(prefix=".repairing-", dir=place.parent))
                copy = Path(beside) / place.name
                fill(name, copy)
                shutil.copymode(words.folder / name, copy)
                _to_disk(copy)
                if file_digest(copy, key) != digest(name):
                    raise InputError(
                        f"{words.folder / name} with the words put back is still not the clean file: it changed in the "
                        "meantime or has other damage; nothing was replaced, locate again"
                    )
                staged[place] = copy
            for place, copy in staged.items():
                copy.replace(place)
                _to_disk(place.parent)
    except OSError as error:
        raise InputError(
            f"{folder} can't be written ({error.strerror or error}): each file there is as it was or repaired in full; "
            "mend that and repair again, or give another folder (-o)"
        ) from error
    return tuple(staged)


def _check_empty(words: FileWords, folder: Path) -> None:
    """Refuse a folder in which a model would be mixed with what is there; a model of one file takes its name alone."""
    one = len(words.files) == 1
    there = [folder / name for name in words.files if (folder / name).exists()] if one else list(folder.glob("*"))
    if there:
        raise InputError(f"{there[0]} is there already: give an empty folder to write the repaired model to (-o)")


def _to_disk(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
