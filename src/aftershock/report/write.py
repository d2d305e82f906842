"""Put a study's report on disk."""

import os
from collections.abc import Mapping
from pathlib import Path

from aftershock.errors import InputError
from aftershock.files import replace_file
from aftershock.report.markdown import markdown
from aftershock.report.page import page
from aftershock.report.tables import csv_text, item_frame, trial_frame
from aftershock.study import StoredStudy, summarise


def write_report(stored: StoredStudy, folder: Path) -> Path:
    """Write `report.html`, `report.md`, `trials.csv` and `items.csv` into `folder`; returns the HTML's path.

    Each file is replaced whole or not at all. Raises InputError when the folder can't be written.
    """
    summary = summarise(stored)
    texts = {
        "trials.csv": csv_text(trial_frame(stored.trials)),
        "items.csv": csv_text(item_frame(stored.trials, stored.golden)),
        "report.md": markdown(stored, summary),
        "report.html": page(stored, summary),
    }
    replaced(folder, texts)
    return folder / "report.html"


def require_writable(folder: Path) -> None:
    """Raise InputError where a folder can't be written, or made, as far as can be told without writing."""
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise InputError(f"{nearest} is no folder: give another one for the report")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{nearest} can't be written: give another folder for the report, or change its rights")


def replaced(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Put files into a folder, each replaced whole or not at all. Raises InputError when it can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise InputError(
            f"the report can't be written to {folder} ({error.strerror}): "
            "check the folder, its rights and the space left on the disk"
        ) from None
