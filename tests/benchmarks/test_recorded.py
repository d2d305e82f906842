"""Records of long runs: kept, found again, not made twice; what a killed run leaves; lines of older files."""

import json
import math
from pathlib import Path

import pytest
from benchmarks.recorded import Json, Lines, read_lines

KEYS = ("kind", "bits", "seed")


def never() -> Json:
    pytest.fail("it was kept")


def test_records_are_kept_and_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Lines(path, KEYS).get({"kind": "trial", "seed": 1}, lambda: {"loss": math.inf})
    again = Lines(path, KEYS)
    assert {"seed": 1, "kind": "trial"} in again
    assert {"kind": "trial", "seed": 2} not in again
    assert again.get({"seed": 1, "kind": "trial"}, never)["loss"] == math.inf
    assert again.get({"kind": "trial", "seed": 2}, lambda: {"loss": 4})["loss"] == 4
    assert [one["loss"] for one in Lines(path, KEYS).records] == [math.inf, 4]
    assert read_lines([path]) == Lines(path, KEYS).records


def test_lists_are_keys_too(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "records.jsonl", KEYS)
    for bits in ([30], [3, 4], "all"):
        lines.put({"kind": "trial", "bits": bits})
    again = Lines(tmp_path / "records.jsonl", KEYS)
    assert len(again.records) == 3
    assert again.get({"kind": "trial", "bits": (3, 4)}, never)["bits"] == [3, 4]
    assert {"kind": "trial", "bits": [4, 3]} not in again


@pytest.mark.parametrize("half", ['{"kind": "trial", "se', '{"kind": "trial", "seed": 2}'])
def test_what_comes_after_half_a_line_is_not_lost(tmp_path: Path, half: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind": "trial", "seed": 1}\n' + half)
    assert [one["seed"] for one in read_lines([path])] == [1]
    Lines(path, KEYS).put({"kind": "trial", "seed": 2})
    assert [one["seed"] for one in Lines(path, KEYS).records] == [1, 2]
    assert path.read_text() == '{"kind": "trial", "seed": 1}\n{"kind": "trial", "seed": 2}\n'


def test_nothing_but_half_a_line_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"kin')
    assert read_lines([path]) == Lines(path, KEYS).records == []
    assert path.read_text() == ""


def test_key_and_value_of_older_files_are_one_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"key": {"kind": "trial", "bits": [30]}, "value": {"loss": 2.0}}) + "\n")
    assert read_lines([path]) == [{"kind": "trial", "bits": [30], "loss": 2.0}]
    assert Lines(path, KEYS).get({"kind": "trial", "bits": [30]}, never)["loss"] == 2.0


def test_of_records_with_one_key_the_last_counts() -> None:
    lines = Lines(None, ("seed",))
    lines.put({"seed": 1, "loss": 1})
    lines.put({"seed": 1, "loss": 2})
    assert lines.records == [{"seed": 1, "loss": 2}]
