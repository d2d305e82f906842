"""Files that aftershock makes once and keeps: downloaded demo models, converted GGUF files."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from aftershock.errors import InputError

Progress = Callable[[str], None]
"""Called with one line when something slow begins."""


def quiet(message: str) -> None:
    """Progress for those who want none."""


def cache_folder() -> Path:
    """`$AFTERSHOCK_CACHE` where it is set, else `aftershock` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("AFTERSHOCK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aftershock"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path to write a file or folder at, which becomes `target` in one step when the block ends.

    A block that fails or is killed leaves no target. Raises InputError when the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
            path = Path(folder) / target.name
            yield path
            if not target.is_dir():  # another process may have made the same folder in the meantime
                path.replace(target)
    except OSError as error:
        raise InputError(
            f"cache folder {target.parent} cannot be written ({error.strerror or error}): "
            "mend that, or set AFTERSHOCK_CACHE to another folder"
        ) from error
