"""The fingerprint of a model: what it takes to tell later which of its words changed, and to put a few of them back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from aftershock.detect.checksum import checksum, checksums, seed_of
from aftershock.detect.digests import file_digest, tensor_digest
from aftershock.detect.lines import LineSums, line_sums
from aftershock.detect.syndromes import Syndromes, syndromes
from aftershock.errors import InputError
from aftershock.models import FileWords, LiveWords, Progress, TensorWords, quiet, renamed

Profile = Literal["exact", "small"]
"""`exact` keeps the sums of each row and column (some per cent of a small model, 0.3 % of an 8B model in bf16), `small`
the syndromes of blocks (0.15 %)."""

_SAID_EVERY = 1 << 30
"""Bytes after which progress is told."""


@dataclass(frozen=True)
class FilePrint:
    """Size in bytes of a file and its BLAKE3 digest, 64 hexadecimal digits."""

    size: int
    digest: str


@dataclass(frozen=True)
class TensorPrint:
    """How a tensor is read, the BLAKE3 digest of its own bytes, and its quick checksum, two unsigned 64-bit numbers."""

    tensor: TensorWords
    digest: str
    checksum: tuple[int, int]


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a model while its words are those that they should be.

    `kind` tells whether it is of files or of a live module, `keyed` whether digests and checksums are made with a key.
    `files` is empty for a module. `signatures` has the sums or the syndromes of each tensor, by name.
    """

    profile: Profile
    kind: Literal["files", "module"]
    keyed: bool
    files: Mapping[str, FilePrint]
    tensors: tuple[TensorPrint, ...]
    signatures: Mapping[str, LineSums | Syndromes]


def take_fingerprint(
    words: FileWords | LiveWords, profile: Profile = "exact", key: bytes | None = None, progress: Progress = quiet
) -> Fingerprint:
    """The fingerprint of a model as it is now: of files, header and settings included, or of a live module.

    A file is read once as a whole and then tensor by tensor, never more than 64 MiB of it at a time. `key` (32 bytes)
    makes a fingerprint that can't be forged without it. Raises InputError where the words can't be read.
    """
    seed = seed_of(key)
    files = {}
    quick: Iterable[tuple[int, int]]
    if isinstance(words, FileWords):
        for name, size in words.files.items():
            progress(f"reading {name} ({size / 1e6:,.0f} MB)")
            files[name] = FilePrint(size, file_digest(words.folder / name, key))
        quick = (checksum(words, tensor, seed) for tensor in words.tensors)
    else:
        quick = checksums([words.tensor(tensor.name) for tensor in words.tensors], seed)
    sign = line_sums if profile == "exact" else syndromes
    tensors, signatures = [], {}
    for tensor, numbers in zip(announced(words.tensors, progress), quick, strict=True):
        tensors.append(TensorPrint(tensor, tensor_digest(words, tensor, key), numbers))
        signatures[tensor.name] = sign(words, tensor)
    if len(signatures) < len(tensors):
        raise InputError("two tensors of the model have the same name: give its files one by one")
    kind: Literal["files", "module"] = "files" if isinstance(words, FileWords) else "module"
    return Fingerprint(profile, kind, key is not None, files, tuple(tensors), signatures)


def as_named(fingerprint: Fingerprint, words: FileWords | LiveWords) -> Fingerprint:
    """The fingerprint with the name that the model's file has here, where both have one only."""
    if not isinstance(words, FileWords) or len(words.files) != 1 or len(fingerprint.files) != 1:
        return fingerprint
    names = dict(zip(fingerprint.files, words.files, strict=True))
    tensors = tuple(renamed((one.tensor for one in fingerprint.tensors), names))
    pairs = list(zip(fingerprint.tensors, tensors, strict=True))
    return replace(
        fingerprint,
        files={names[name]: file for name, file in fingerprint.files.items()},
        tensors=tuple(replace(one, tensor=tensor) for one, tensor in pairs),
        signatures={tensor.name: fingerprint.signatures[one.tensor.name] for one, tensor in pairs},
    )


def announced(tensors: Iterable[TensorWords], progress: Progress) -> Iterator[TensorWords]:
    """The tensors one by one; after each GiB one line tells how much of them all has been gone through."""
    every = tuple(tensors)
    total, done, said = sum(tensor.size for tensor in every), 0, 0
    for tensor in every:
        yield tensor
        done += tensor.size
        if done - said >= _SAID_EVERY:
            said = done
            progress(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB")
