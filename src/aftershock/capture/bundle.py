"""A capture bundle: what an engine computed for some prompts, in memory or as a folder of JSON and safetensors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aftershock.capture.entries import Record, Stored
from aftershock.capture.manifest import BUNDLE_VERSION, FORMAT, Manifest
from aftershock.errors import InputError

MANIFEST = "manifest.json"

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
"""Types that a bundle's tensors may have, by the names of safetensors."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle: its manifest, and its tensors, each of which is read when it is asked for."""

    manifest: Manifest
    tensors: Mapping[Stored, torch.Tensor]

    def output(self, record: Record) -> torch.Tensor:
        """A record's output, shape (tokens, channels) or (tokens, heads, channels), on the CPU."""
        return self.tensors[record.output]

    def input(self, record: Record) -> torch.Tensor | None:
        """A record's input, shape (tokens, ...), on the CPU; None where it has none."""
        return None if record.input is None else self.tensors[record.input]

    @property
    def logits(self) -> torch.Tensor | None:
        """The logits, shape (tokens, vocabulary), on the CPU; None where they were not recorded."""
        return None if self.manifest.logits is None else self.tensors[self.manifest.logits.stored]


@dataclass(frozen=True)
class _Files(Mapping[Stored, torch.Tensor]):
    """The tensors of a bundle's folder, read one by one."""

    folder: Path
    stored: tuple[Stored, ...]

    def __getitem__(self, stored: Stored) -> torch.Tensor:
        path = self.folder / stored.file
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored.key)
                return tensor
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def __iter__(self) -> Iterator[Stored]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def read_bundle(path: str | Path) -> Bundle:
    """The bundle in a folder. Every file's table is checked here, tensors are read when they are asked for.

    Raises InputError for what is no bundle, was made by a newer aftershock, is incomplete, cut short, or holds tensors
    that are not what the manifest says.
    """
    folder = Path(path)
    manifest = _manifest(folder / MANIFEST)
    by_file: dict[str, list[Stored]] = {}
    for stored in manifest.stored:
        by_file.setdefault(stored.file, []).append(stored)
    for name, expected in by_file.items():
        _check(folder / name, expected)
    return Bundle(manifest, _Files(folder, manifest.stored))


def write_bundle(bundle: Bundle, path: str | Path) -> None:
    """Write a bundle as a folder, which must not exist yet and appears complete or not at all.

    Raises InputError where it exists or the disk refuses.
    """
    folder = Path(path)
    if folder.exists():
        raise InputError(f"{folder} exists already: give the bundle another folder, or remove that one")
    files: dict[str, list[Stored]] = {}
    for stored in bundle.manifest.stored:
        files.setdefault(stored.file, []).append(stored)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
            staged = Path(temporary) / folder.name
            staged.mkdir()
            for name, members in files.items():
                save_file({stored.key: bundle.tensors[stored].contiguous() for stored in members}, staged / name)
            (staged / MANIFEST).write_text(bundle.manifest.model_dump_json(indent=1), encoding="utf-8")
            staged.rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"bundle {folder} cannot be written ({error}): give a folder with room to write") from error


def _manifest(path: Path) -> Manifest:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} can't be read ({error.strerror or error}): give the folder of a capture bundle"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}): it was cut short or damaged, capture it again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f'{path} is no capture bundle: its "format" is not "{FORMAT}"')
    version = found.get("version")
    if isinstance(version, int) and version > BUNDLE_VERSION:
        raise InputError(f"{path} was made by a newer aftershock (bundle version {version}): update aftershock")
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {f'{place}: ' if place else ''}{message} (see docs/bundles.md)") from None


def _check(path: Path, expected: list[Stored]) -> None:
    """Raise InputError unless a file holds these tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            for stored in expected:
                if stored.key not in keys:
                    raise InputError(f"{path} lacks {stored.key}, which the manifest lists: capture the bundle again")
                tensor = file.get_slice(stored.key)
                shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
                if (shape, dtype) != (stored.shape, stored.dtype):
                    raise InputError(
                        f"{path}: {stored.key} is {dtype} of shape {shape}, where the manifest says {stored.dtype} of "
                        f"shape {stored.shape}: capture the bundle again"
                    )
                if dtype not in DTYPES.values():
                    raise InputError(f"{path}: {stored.key} is of type {dtype}: store {', '.join(DTYPES.values())}")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} is missing, which the manifest lists: copy the whole folder, or capture it again")
    return InputError(f"{path} is damaged or cut short ({error}): copy the bundle again, or capture it again")
