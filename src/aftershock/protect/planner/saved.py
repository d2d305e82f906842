"""Protections as a small file: JSON, to be read again and given to `protect`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from aftershock.errors import InputError
from aftershock.files import replace_file
from aftershock.protect.configs import Checksum, Protection

VERSION = 1

_KINDS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Protection)}


def save_protections(protections: Sequence[Protection], path: Path) -> None:
    """Write protections to a file, whole or not at all. Raises InputError where it can't be written, and for checksums
    with a scheme, which belongs to the file of its regions (`save_regions`)."""
    if any(isinstance(one, Checksum) and one.scheme is not None for one in protections):
        raise InputError("a scheme is not kept with its checksum: save its regions, and give the scheme again")
    try:
        replace_file(path, protections_text(protections))
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}): give another path") from None


def protections_text(protections: Sequence[Protection]) -> str:
    """What is written to a file."""
    content = [
        {"kind": type(one).__name__, **_KINDS[type(one).__name__].dump_python(one, mode="json")} for one in protections
    ]
    return json.dumps({"version": VERSION, "protections": content}, indent=1) + "\n"


def load_protections(path: Path) -> tuple[Protection, ...]:
    """Read protections. Raises InputError for a file that is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise InputError(f"{path} has version {content['version']}, not {VERSION}: plan the protections again")
        return tuple(_read(dict(one)) for one in content["protections"])
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): give a file that save_protections wrote") from None
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} holds no protections: give a file that save_protections wrote") from None


def _read(fields: dict[str, Any]) -> Protection:
    kind = _KINDS[fields.pop("kind")]
    found: Protection = kind.validate_python(fields, extra="forbid")
    return found
