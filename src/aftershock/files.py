"""How a file is written: whole or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, content: str | bytes) -> None:
    """Write beside a file and rename: a reader finds the old content or the new one, never half of it. Text is written
    in UTF-8. Raises OSError where that fails, and leaves nothing behind."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
