import dataclasses

import polars as pl
import pytest

from aftershock.errors import InputError
from aftershock.report import write_report


def test_all_files_are_written_whole_and_nothing_else_is_left(stored, tmp_path):
    folder = tmp_path / "new" / "study"
    small = dataclasses.replace(stored, trials=stored.trials[:20])
    assert write_report(small, folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "trials.csv", "items.csv"}
    assert len(pl.read_csv(folder / "trials.csv")) == 20
    assert len(pl.read_csv(folder / "items.csv")) == sum(len(trial.items) for trial in small.trials)
    assert (folder / "report.html").read_text("utf-8").endswith("</html>")


def test_a_place_that_cannot_be_written_is_an_input_error(stored, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    small = dataclasses.replace(stored, trials=stored.trials[:2])
    with pytest.raises(InputError, match="can't be written"):
        write_report(small, blocked)
    assert blocked.read_text() == "not a folder"


def test_a_failed_write_leaves_the_old_file_as_it_was(stored, tmp_path):
    small = dataclasses.replace(stored, trials=stored.trials[:2])
    (tmp_path / "trials.csv").mkdir()
    with pytest.raises(InputError):
        write_report(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]
