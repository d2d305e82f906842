"""Studies on disk that the tests of the command line start from."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from aftershock.cli import run
from aftershock.study import to_toml
from tiny_study import tiny_settings

Edit = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `llama`, the task `task.jsonl` and the study file `study.toml` of 12 trials."""
    folder = tmp_path_factory.mktemp("command-line")
    (folder / "study.toml").write_text(to_toml(tiny_settings(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(tiny: Path) -> Path:
    """The --out folder of that study, complete. Not to be changed: take `edited`."""
    assert run(["study", str(tiny / "study.toml"), "--out", str(tiny / "finished"), "--json"]) == 0
    return tiny / "finished"


@pytest.fixture
def edited(finished: Path, tmp_path: Path) -> Edit:
    """Makes a copy of the finished study in which SQL statements were carried out."""

    def edit(*statements: str) -> Path:
        folder = Path(shutil.copytree(finished, tmp_path / "edited"))
        with sqlite3.connect(folder / "study.sqlite") as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return folder

    return edit
