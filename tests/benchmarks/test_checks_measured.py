"""The parts of the benchmarks of checks that a wrong figure could come from."""

import json

import numpy as np
import pytest
import torch
from benchmarks.detection import WARP, Seen, errors, struck
from benchmarks.detection_checks import checks
from benchmarks.false_alarms import STEPS, Tally, quantile, text_of, windows

from aftershock.errors import InputError
from aftershock.numerics import generator, words
from tiny_models import tiny_loaded


def test_counts_of_strains_and_alarms() -> None:
    tally = Tally(torch.zeros(STEPS + 1, dtype=torch.int64), torch.zeros((), dtype=torch.int64), torch.tensor(0))
    tally.add("o", torch.tensor([[0.0, 0.2504], [1.5, torch.nan]]), torch.tensor([[False, False], [True, True]]))
    assert tally.counts.nonzero()[:, 0].tolist() == [0, 250, STEPS]
    assert (int(tally.alarms), int(tally.not_finite), float(tally.largest["o"])) == (1, 1, 1.5)


def test_the_quantile_is_the_upper_end_of_its_step() -> None:
    counts = [0] * (STEPS + 1)
    counts[10], counts[20] = 999, 1
    assert quantile(counts, 0.5) == quantile(counts, 0.999) == 11 / STEPS
    assert quantile(counts, 0.9995) == 21 / STEPS


def test_text_is_whole_files_and_strings_of_records(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text(json.dumps({"x": "two", "y": [3, "four"], "z": {"w": "five"}}) + "\n")
    assert text_of([tmp_path / "a.txt", tmp_path / "b.jsonl"]) == "one\ntwo\nfour\nfive"
    with pytest.raises(InputError, match="can't be read"):
        text_of([tmp_path / "c.txt"])


def test_windows_hold_each_position_once() -> None:
    model = tiny_loaded("llama")
    text = "the river rose " * 400
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = windows(model, text, 1200)
    assert found.flatten().tolist() == ids[: found.numel()]
    assert len(found) == min(len(ids), 1200) // 512


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int32], ids=str)
def test_strikes_are_where_and_what_they_are_said_to_be(dtype: torch.dtype) -> None:
    values = torch.arange(1, 401).view(4, 100).to(dtype)
    bits = values.element_size() * 8
    for bit in (0, bits - 1):
        changed = words(struck(values, bit, "single", generator(0, 0, "strike"))) ^ words(values)
        assert (changed != 0).sum(1).tolist() == [1] * 4
        assert {int(one) for one in changed[changed != 0]} == {1 if bit == 0 else -(1 << bit)}
        strided = struck(values, bit, "strided", generator(0, 0, "strike"))
        places = (words(strided) != words(values)).nonzero()
        assert len({int(places[places[:, 0] == row, 1].min()) for row in range(4)}) > 1
        for row in range(4):
            assert np.diff(places[places[:, 0] == row, 1].numpy()).tolist() == [WARP] * (
                len(places[places[:, 0] == row]) - 1
            )
    several = words(struck(values, 3, "several", generator(0, 0, "strike"))) ^ words(values)
    assert ((several[several != 0] >> 3) & 1).all()


def test_errors_are_in_units_of_the_rows_root_mean_square() -> None:
    clean = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    found = errors(torch.tensor([[3.0, 9.0], [torch.nan, 1.0]]), clean)
    assert found.tolist() == [pytest.approx(5 / 12.5**0.5), float("inf")]


def test_strikes_that_change_nothing_are_no_trials() -> None:
    seen = Seen()
    seen.add(torch.tensor([True, False, False, True]), torch.tensor([2.0, 0.5, 0.0, 0.0]))
    assert (seen.trials, seen.seen, seen.largest_missed) == (2, 1, 0.5)


def test_what_no_flip_may_escape() -> None:
    def cell(site: str, bit: int, seen: int, **more: object) -> dict[str, object]:
        kind = {"dtype": "bfloat16", "check": "stored", "pattern": "single"}
        return {**kind, "site": site, "bit": bit, "trials": 4, "seen": seen, "largest_missed": 0.5, **more}

    good = [
        cell("output", 14, 4),
        cell("output", 13, 0),
        cell("sum", 30, 4),
        cell("sum", 14, 0),
        cell("int32 sum", 14, 4, check="rows"),
        cell("int32 sum", 31, 0, check="rows", pattern="strided"),
        cell("int32 sum", 31, 4, check="columns", pattern="strided"),
        {"dtype": "bfloat16", "site": "smallest error seen in 99 % of rows", "check": "fused", "thresholds": 1.0},
    ]
    assert [(one["value"], one["met"]) for one in checks(good)] == [(0, True), *[(1.0, True)] * 3]
    bad = [
        cell("output", 3, 0, largest_missed=float("inf")),
        cell("weight", 14, 3),
        cell("int32 sum", 0, 3, check="rows"),
        cell("int32 sum", 0, 3, check="columns"),
    ]
    assert [(one["value"], one["met"]) for one in checks(bad)] == [(1, False), *[(0.75, False)] * 3]
