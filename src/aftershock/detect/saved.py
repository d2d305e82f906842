"""A fingerprint as a file: one safetensors file with a compressed record of layouts and all numbers as tensors."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError, model_validator
from safetensors.torch import load, save

from aftershock.detect.digests import derived, hasher
from aftershock.detect.fingerprint import FilePrint, Fingerprint, Profile, TensorPrint
from aftershock.detect.lines import LineSums
from aftershock.detect.syndromes import Syndromes, blocks_of, correctable
from aftershock.errors import InputError
from aftershock.files import replace_file
from aftershock.models import TensorWords
from aftershock.models.conversion import first_line

VERSION = 2
_MARK, _NO_DIGEST = "aftershock fingerprint", "0" * 64
_HEAD = 1 << 16
"""Bytes of a fingerprint's file that hold its head: some names and numbers."""


class _Record(BaseModel):
    """What of a fingerprint is no number of a tensor. The digests are in the file's tensors."""

    profile: Profile
    kind: Literal["files", "module"]
    files: dict[str, FilePrint]
    tensors: list[TensorWords]

    @model_validator(mode="after")
    def _check(self) -> "_Record":
        for name in self.files:
            if name != Path(name).name:
                raise ValueError(f"{name!r} is not the plain name of a file")
        for tensor in self.tensors:
            if not 0 <= tensor.size <= tensor.rows * tensor.row_bytes or tensor.width not in (1, 2, 4):
                raise ValueError(f"{tensor.name} has rows and columns that don't hold its bytes")
            if any(extent.file not in self.files or min(extent.offset, extent.size) < 0 for extent in tensor.extents):
                raise ValueError(f"{tensor.name} lies in no file of the fingerprint")
        return self


def save_fingerprint(fingerprint: Fingerprint, path: Path, key: bytes | None = None) -> None:
    """Write a fingerprint to a file, whole or not at all; `key` is the one that it was taken with.

    Raises InputError when the file can't be written or is there and no fingerprint, and when the key is missing or not
    wanted.
    """
    check_replaceable(path)
    _check_key(path, fingerprint.keyed, key)
    tensors = [one.tensor for one in fingerprint.tensors]
    record = _Record(profile=fingerprint.profile, kind=fingerprint.kind, files=dict(fingerprint.files), tensors=tensors)
    numbers = {
        "record": _bytes(zlib.compress(record.model_dump_json().encode(), 9)),
        "digests": _bytes(b"".join(bytes.fromhex(one.digest) for one in fingerprint.tensors)),
        "checksums": _bytes(b"".join(n.to_bytes(8, "little") for one in fingerprint.tensors for n in one.checksum)),
        **_numbers(fingerprint.profile, [fingerprint.signatures[tensor.name] for tensor in tensors]),
    }
    keyed = "yes" if fingerprint.keyed else "no"
    data = save(numbers, {"aftershock": _MARK, "version": str(VERSION), "keyed": keyed, "digest": _NO_DIGEST})
    data = data.replace(_NO_DIGEST.encode(), _own_digest(data, key).encode(), 1)
    try:
        replace_file(path, data)
    except OSError as error:
        raise InputError(
            f"fingerprint {path} can't be written ({error.strerror or error}): choose a folder with room to write"
        ) from error


def check_replaceable(path: Path) -> None:
    """Raise InputError where a file that is no fingerprint would be lost if one were written there."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            _about(path, file.read(_HEAD))
    except (InputError, OSError) as error:
        raise InputError(
            f"{path} is there already and is no fingerprint: give another file to write to (-o), or remove it"
        ) from error


def load_fingerprint(path: Path, key: bytes | None = None) -> Fingerprint:
    """The fingerprint in a file.

    Raises InputError for a file that can't be read, is no fingerprint, is damaged, was made by a newer aftershock, or
    was taken without a key or with another one than `key`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"fingerprint {path} can't be read ({error.strerror}): check the path") from error
    about = _about(path, data)
    found = about.get("digest", "")
    if about.get("keyed") in ("yes", "no"):
        _check_key(path, about["keyed"] == "yes", key)
    if not found or _own_digest(data.replace(found.encode(), _NO_DIGEST.encode(), 1), key) != found:
        raise InputError(
            f"fingerprint {path} is damaged, was changed, or has another key: give the right key, or take it again"
            if key
            else f"fingerprint {path} is damaged or was changed: get a good copy, or take it again from a good model"
        )
    version = about.get("version", "")
    if not version.isdigit():
        raise InputError(f"fingerprint {path} tells no version of its format: take it again")
    if int(version) > VERSION:
        raise InputError(f"fingerprint {path} was made by a newer aftershock (its format {version}): update")
    if int(version) < VERSION:
        raise InputError(
            f"fingerprint {path} was made by an older aftershock (its format {version}), whose checksums differ: check "
            "the model with that one, then take the fingerprint again"
        )
    return _read(path, load(data), key is not None)


def _about(path: Path, data: bytes) -> dict[str, str]:
    """What the head of a fingerprint's file tells."""
    try:
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if about["aftershock"] == _MARK:
            return {str(name): str(value) for name, value in about.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path} is no fingerprint, or its head is damaged: give what 'aftershock fingerprint' wrote")


def _own_digest(data: bytes, key: bytes | None) -> str:
    """Digest of a fingerprint's file whose own digest is zeros; its key is another than that of tensors' digests."""
    return str(hasher(key and derived(key, "fingerprint file")).update(data).hexdigest())


def _check_key(path: Path, keyed: bool, key: bytes | None) -> None:
    if keyed and key is None:
        raise InputError(f"fingerprint {path} was taken with a key: give the same key")
    if key is not None and not keyed:
        raise InputError(f"fingerprint {path} was taken without a key, so anyone can have made it: give one with a key")


def _bytes(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _numbers(profile: Profile, signatures: Sequence[LineSums | Syndromes]) -> dict[str, torch.Tensor]:
    """All signatures one after the other: of each tensor its rows' sums, then its columns', or its syndromes."""
    if profile == "exact":
        sums = [lines for one in signatures if isinstance(one, LineSums) for lines in (one.rows, one.columns)]
        return {"sums": torch.cat([torch.empty(0, 2, dtype=torch.int64), *sums])}
    values = [one.values.flatten() for one in signatures if isinstance(one, Syndromes)]
    return {"syndromes": torch.cat([torch.empty(0, dtype=torch.int64), *values]).to(torch.int32)}


def _read(path: Path, numbers: Mapping[str, torch.Tensor], keyed: bool) -> Fingerprint:
    try:
        record = _Record.model_validate_json(zlib.decompress(numbers["record"].numpy().tobytes()))
        digests = numbers["digests"].view(-1, 32).numpy()
        checksums = numbers["checksums"].view(torch.int64).view(-1, 2).numpy().view(np.uint64)
        prints = [
            TensorPrint(tensor, digest.tobytes().hex(), (int(first), int(second)))
            for tensor, digest, (first, second) in zip(record.tensors, digests, checksums, strict=True)
        ]
        signatures = _signatures(record, numbers)
    except (ValidationError, KeyError, ValueError, RuntimeError, zlib.error) as error:
        raise InputError(
            f"fingerprint {path} contradicts itself ({first_line(error)}): take it again from a good model"
        ) from error
    return Fingerprint(record.profile, record.kind, keyed, record.files, tuple(prints), signatures)


def _signatures(record: _Record, numbers: Mapping[str, torch.Tensor]) -> dict[str, LineSums | Syndromes]:
    if record.profile == "exact":
        counts = [count for tensor in record.tensors for count in (tensor.rows, tensor.columns)]
        sums = torch.split(numbers["sums"], counts)
        pairs = zip(record.tensors, sums[::2], sums[1::2], strict=True)
        return {tensor.name: LineSums(rows, columns) for tensor, rows, columns in pairs}
    shapes = [(len(blocks_of(tensor)) - 1, 2 * correctable(tensor)) for tensor in record.tensors]
    values = torch.split(numbers["syndromes"].to(torch.int64), [blocks * count for blocks, count in shapes])
    blocks = zip(record.tensors, values, shapes, strict=True)
    return {tensor.name: Syndromes(some.view(shape)) for tensor, some, shape in blocks}
