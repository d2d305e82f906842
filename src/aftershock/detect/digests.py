"""BLAKE3 digests of stored words: equal digests mean equal bytes, whoever changed them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from blake3 import blake3

from aftershock.errors import InputError
from aftershock.models import ModelWords, TensorWords, parts

KEY_BYTES = 32
"""Length of a key."""

_AT_ONCE = 1 << 24
"""Bytes of a file that are read in one go."""


def hasher(key: bytes | None = None) -> blake3:
    """A new BLAKE3 hasher; with a key (32 bytes) in its keyed mode, whose digests nobody can make without the key."""
    return blake3(max_threads=blake3.AUTO) if key is None else blake3(key=key, max_threads=blake3.AUTO)


def tensor_digest(words: ModelWords, tensor: TensorWords, key: bytes | None = None) -> str:
    """Digest of a tensor's own bytes, without padding, as 64 hexadecimal digits. Raises InputError as `read` does."""
    digest = hasher(key)
    for _, some in chunks(words, tensor):
        digest.update(some.cpu().numpy().data)
    return str(digest.hexdigest())


def file_digest(path: Path, key: bytes | None = None) -> str:
    """Digest of a whole file, as 64 hexadecimal digits. Raises InputError where it can't be read."""
    digest = hasher(key)
    try:
        with path.open("rb", buffering=0) as file:
            while some := file.read(_AT_ONCE):
                digest.update(some)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): check the file and its permissions") from error
    return str(digest.hexdigest())


def chunks(words: ModelWords, tensor: TensorWords) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor's own bytes in order, some 64 MiB at a time: number of the first MiB, and the bytes (uint8, 1-D)."""
    size = 1 << 20
    for first, part in parts(words, replace(tensor, rows=-(-tensor.size // size), columns=size, width=1)):
        yield first, part.flatten()[: tensor.size - first * size].view(torch.uint8)


def derived(key: bytes, purpose: str) -> bytes:
    """32 bytes that depend on a key and a purpose, and tell nothing of the key."""
    return bytes(blake3(key, derive_key_context=f"aftershock {purpose}").digest())


def read_key(path: Path) -> bytes:
    """The key in a file: its 32 bytes. Raises InputError for a file that can't be read or has another length."""
    try:
        with path.open("rb") as file:
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise InputError(f"key file {path} can't be read ({error.strerror}): give a file of 32 random bytes") from error
    if len(key) != KEY_BYTES:
        raise InputError(f"key file {path} is not 32 bytes long: make one by 'head -c 32 /dev/urandom > {path.name}'")
    return key
