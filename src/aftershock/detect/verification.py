"""Whether a model's words are still those of its fingerprint, and which tensors and files are not."""

import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from aftershock.detect.checksum import checksums
from aftershock.detect.digests import tensor_digest
from aftershock.detect.fingerprint import Fingerprint, announced, as_named
from aftershock.errors import InputError
from aftershock.models import FileWords, LiveWords, Progress, TensorWords, file_words, model_files, quiet

_WEIGHTS = (".safetensors", ".gguf")
_KINDS = {"files": "files", "module": "a live module"}


class Verification(BaseModel):
    """What a check found. `clean` when nothing differs from the fingerprint, in words, tensors or files.

    `differing` are names of tensors whose words changed (headers and files of settings among them), `reshaped` those
    of another shape or type, `resized` files that are longer or shorter, `missing` and `extra` names of tensors and
    files. `checked` tensors, `headers` of files and files of `settings` were compared, `bytes` bytes in all, in
    `seconds`.
    """

    clean: bool
    differing: tuple[str, ...]
    reshaped: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    checked: int
    headers: int
    settings: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Compared:
    """How a model's tensors and files go with a fingerprint's, before words are read.

    `checked` are the tensors whose words can be compared; `changed` those that are known to differ.
    """

    checked: tuple[TensorWords, ...]
    changed: tuple[TensorWords, ...] = ()
    reshaped: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def verify(
    words: FileWords | LiveWords, fingerprint: Fingerprint, key: bytes | None = None, progress: Progress = quiet
) -> Verification:
    """Compare a model with its fingerprint: files by digest, read as the fingerprint says, so that damage in a file's
    own table does not hinder; a live module by its checksum, or by digest where the fingerprint has a key.

    Raises InputError for a fingerprint of another model or of the other kind, a key that is missing or not wanted,
    a file of weights that was cut short, and files that can't be read.
    """
    begin = time.monotonic()
    if fingerprint.keyed != (key is not None):
        wanted = "with a key: give the same key" if key is None else "without a key: give none"
        raise InputError(f"the fingerprint was taken {wanted}")
    kind = "files" if isinstance(words, FileWords) else "module"
    if fingerprint.kind != kind:
        raise InputError(
            f"the fingerprint is of {_KINDS[fingerprint.kind]} and can't check {_KINDS[kind]}: "
            f"take one of {_KINDS[kind]}"
        )
    fingerprint = as_named(fingerprint, words)
    # Where the files have the names and sizes of the fingerprint's, a table of theirs that tells otherwise is damaged.
    if isinstance(words, LiveWords) or dict(words.files) != {name: one.size for name, one in fingerprint.files.items()}:
        _check_model(words.tensors, fingerprint)
    found = _of_files(words, fingerprint) if isinstance(words, FileWords) else _of_module(words, fingerprint)
    prints = {one.tensor.name: one for one in fingerprint.tensors}
    if isinstance(words, LiveWords) and key is None:
        quick = checksums([words.tensor(tensor.name) for tensor in found.checked])
        pairs = zip(found.checked, quick, strict=True)
        differing = [tensor.name for tensor, now in pairs if now != prints[tensor.name].checksum]
    else:
        told = announced(found.checked, progress)
        differing = [one.name for one in told if tensor_digest(words, one, key) != prints[one.name].digest]
    looked_at = (*found.checked, *found.changed)
    beside = [one.name for one in looked_at if not one.is_tensor]
    whole = sum(name in fingerprint.files for name in beside)
    return Verification(
        clean=not (differing or found.changed or found.reshaped or found.resized or found.missing or found.extra),
        differing=(*differing, *(one.name for one in found.changed)),
        reshaped=found.reshaped,
        resized=found.resized,
        missing=found.missing,
        extra=found.extra,
        checked=len(looked_at) - len(beside),
        headers=len(beside) - whole,
        settings=whole,
        bytes=sum(tensor.size for tensor in found.checked),
        seconds=time.monotonic() - begin,
    )


def fingerprinted_words(spec: str, fingerprint: Fingerprint, progress: Progress = quiet) -> FileWords:
    """The words of a model on disk, to be checked with a fingerprint: as the files' own tables tell or, where those are
    damaged, as the fingerprint tells.

    Raises InputError for a model that is missing, or a fingerprint of a live module.
    """
    if fingerprint.kind != "files":
        raise InputError("the fingerprint is of a live module and can't check files: take one of the files")
    paths = model_files(spec, progress)
    try:
        return file_words(spec, progress)
    except InputError:
        words = FileWords(paths[0].parent, {path.name: path.stat().st_size for path in paths}, ())
        return replace(words, tensors=tuple(one.tensor for one in as_named(fingerprint, words).tensors))


def _check_model(tensors: Sequence[TensorWords], fingerprint: Fingerprint) -> None:
    """Refuse a fingerprint of another model: fewer than half of its tensors are here by name and shape, or by type."""
    here = {tensor.name: tensor for tensor in tensors}
    known = [one.tensor for one in fingerprint.tensors if one.tensor.is_tensor]
    alike = [tensor for tensor in known if tensor.name in here and here[tensor.name].shape == tensor.shape]
    if 2 * len(alike) < len(known):
        raise InputError(
            f"the fingerprint is of another model: {len(alike)} of its {len(known)} tensors are in this one by name "
            "and shape; give the fingerprint of this model"
        )
    typed = [tensor for tensor in alike if here[tensor.name].format == tensor.format]
    if 2 * len(typed) < len(alike):
        raise InputError(
            f"the fingerprint is of the same model in another type: {alike[0].name} was {alike[0].format} and is "
            f"{here[alike[0].name].format}; load the model as it was, or take a new fingerprint"
        )


def _of_module(words: LiveWords, fingerprint: Fingerprint) -> _Compared:
    here = {tensor.name: tensor for tensor in words.tensors}
    known = {one.tensor.name: one.tensor for one in fingerprint.tensors}
    both = [name for name in known if name in here]
    same = {name: known[name] for name in both if _form(here[name]) == _form(known[name])}
    return _Compared(
        checked=tuple(same.values()),
        reshaped=tuple(name for name in both if name not in same),
        missing=tuple(name for name in known if name not in here),
        extra=tuple(name for name in here if name not in known),
    )


def _form(tensor: TensorWords) -> tuple[str, tuple[int, ...], int]:
    return tensor.format, tensor.shape, tensor.size


def _of_files(words: FileWords, fingerprint: Fingerprint) -> _Compared:
    printed = [one.tensor for one in fingerprint.tensors]
    sizes = {name: one.size for name, one in fingerprint.files.items()}
    there = {name: path.stat().st_size for name in sizes if (path := words.folder / name).is_file()}
    for name, size in there.items():
        if size < sizes[name] and name.endswith(_WEIGHTS):
            raise InputError(
                f"{words.folder / name} lacks its last {sizes[name] - size:,} bytes: it was cut short, "
                "copy or download it again"
            )
    resized = [name for name, size in there.items() if size != sizes[name]]
    gone = [name for name in sizes if name not in there]
    short = {name for name, size in there.items() if size < sizes[name]}
    lost = [one for one in printed if _is_within(one, gone)]
    changed = [one for one in printed if _is_within(one, short)]
    return _Compared(
        checked=tuple(one for one in printed if not _is_within(one, {*gone, *short})),
        changed=tuple(changed),
        resized=tuple(resized),
        missing=tuple(dict.fromkeys((*gone, *(one.name for one in lost)))),
        extra=tuple(name for name in words.files if name not in sizes),
    )


def _is_within(tensor: TensorWords, files: Container[str]) -> bool:
    """Whether a tensor lies in some files, in part or as a whole."""
    return any(extent.file in files for extent in tensor.extents)
