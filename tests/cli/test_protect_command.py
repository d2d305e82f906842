"""`aftershock protect` from a study to a plan, its files and its refusals."""

import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from aftershock.cli import run
from aftershock.errors import InputError
from aftershock.protect import (
    Planned,
    ProtectionPlan,
    RangeGuard,
    load_protections,
    observe_bounds,
    protect,
    save_protections,
)
from aftershock.protect.planner.candidates import MARGIN, candidates
from aftershock.report import plan_text, require_writable, write_protection_plan
from aftershock.report.protection import curve_frame, plan_content
from aftershock.study import load_study, make_plan, to_toml
from tiny_models import save_tiny, tiny_loaded
from tiny_study import tiny_settings

Edit = Callable[..., Path]
PLENTY = ["--budget", "100000%", "--memory-budget", "1000%", "--trials", "10"]


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `llama` and, in `study`, a study of flips in its weights that do harm."""
    folder = tmp_path_factory.mktemp("protect")
    run_table = {"trials": 40, "items_per_fault": 4, "traced": 0, "audit": 0.0}
    settings = tiny_settings(folder, run=run_table, faults={"sites": ("weight",), "bits": (30,)})
    (folder / "study.toml").write_text(to_toml(settings), encoding="utf-8")
    assert run(["study", str(folder / "study.toml"), "--out", str(folder / "study"), "--json"]) == 0
    return folder


@pytest.fixture(scope="module")
def planned(harmed: Path) -> Path:
    """The --out folder of a plan with plenty to spend; `printed` holds what the command printed."""
    out, printed = harmed / "plan", StringIO()
    line = ["protect", str(harmed / "llama"), "--study", str(harmed / "study"), *PLENTY, "--out", str(out), "--json"]
    with redirect_stdout(printed):
        assert run(line) == 0
    (out / "printed").write_text(printed.getvalue(), encoding="utf-8")
    return out


def record(planned: Path) -> Any:
    return json.loads((planned / "plan.json").read_text(encoding="utf-8"))


def test_what_a_scrub_can_undo_is_gone(planned: Path) -> None:
    found = record(planned)
    assert found["recorded"]["before"]["estimate"] > 0
    assert found["recorded"]["after"]["estimate"] == 0
    assert found["fresh"]["before"]["estimate"] > 0
    assert found["fresh"]["after"]["estimate"] == 0
    assert (found["fresh"]["caused"], found["false_alarms"]) == (0, 0)
    assert found["fresh"]["coverage"]["estimate"] == 1
    assert found["fresh"]["seed"] != 0


def test_the_curve_ends_where_nothing_more_is_removed(planned: Path) -> None:
    curve = record(planned)["curve"]
    assert curve[0]["names"] == []
    assert curve[0]["sdc"] == pytest.approx(record(planned)["recorded"]["before"]["estimate"])
    assert curve[-1]["sdc"] == 0
    assert [one["latency"] for one in curve] == sorted(one["latency"] for one in curve)
    assert [one["sdc"] for one in curve] == sorted((one["sdc"] for one in curve), reverse=True)


def test_copies_that_do_not_fit_are_not_offered(harmed: Path) -> None:
    study = load_study(harmed / "study")
    plan = make_plan(study.settings)
    few, many = ([one.name for one in candidates(plan, study, memory)] for memory in (100, 10**9))
    assert not [name for name in few if name.startswith("copies")]
    assert "copies of down" in many
    assert "copies of the most fragile parameters" in many
    assert set(few) < set(many)


def test_range_guards_are_as_wide_as_golden_text_and_a_margin(harmed: Path) -> None:
    study = load_study(harmed / "study")
    plan = make_plan(study.settings)
    texts = [one.prompt + (one.output if one.kind == "generation" else "") for one in study.golden]
    assert any(one.output for one in study.golden if one.kind == "generation")
    tokens = [plan.model.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    guards = [one.protection for one in candidates(plan, study, 0) if isinstance(one.protection, RangeGuard)]
    assert {name: own for one in guards for name, own in one.bounds.items()} == observe_bounds(
        plan.model, tokens, margin=MARGIN
    )


def test_memory_is_kept_to(harmed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["protect", str(harmed / "llama"), "--study", str(harmed / "study"), *PLENTY, "--memory-budget", "0%"]
    capsys.readouterr()
    assert run([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory_budget"] == found["cost"]["predicted_bytes"] == 0
    assert found["chosen"]


def test_protections_are_read_again(planned: Path, tmp_path: Path) -> None:
    protections = load_protections(planned / "protections.json")
    assert len(protections) == len(record(planned)["chosen"])
    save_protections(protections, tmp_path / "again.json")
    assert load_protections(tmp_path / "again.json") == protections
    protect(tiny_loaded("llama"), protections).remove()


def test_a_page_and_a_picture(planned: Path) -> None:
    page = (planned / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in record(planned)["chosen"])
    assert "--budget 100000% --memory-budget 1000% --trials 10<" in page
    assert (planned / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_record(planned: Path) -> None:
    printed = (planned / "printed").read_text(encoding="utf-8")
    assert json.loads(printed) == record(planned)
    text = plan_text(ProtectionPlan.model_validate_json(printed))
    assert "SDC 0.00 %" in text
    assert all(name in text for name in record(planned)["chosen"])
    found = record(planned)
    assert f"{100 * found['cost']['nbytes'] / found['model_bytes']:.2f} % of the model" in text
    assert found["fresh"]["trials"] == 10


def test_what_costs_more_than_its_budget_is_said(planned: Path) -> None:
    found = ProtectionPlan.model_validate(record(planned))
    cost = found.cost.latency.estimate
    assert not plan_content(found.model_copy(update={"budget": cost + 0.01}), "").warnings
    (said,) = plan_content(found.model_copy(update={"budget": cost - 0.01}), "").warnings
    assert "more than its budget" in said
    (said,) = plan_content(found.model_copy(update={"budget": cost + 0.01, "false_alarms": 3}), "").warnings
    assert said.startswith("3 of")


def test_what_was_chosen_is_marked_and_comes_first(planned: Path) -> None:
    found = ProtectionPlan.model_validate(record(planned))
    rows = plan_content(found, "").offered.rows
    assert {row[0] for row in rows[: len(found.chosen)]} == set(found.chosen)
    drawn = curve_frame(found)
    assert [set(names.split("; ")) == set(found.chosen) for names in drawn["names"]] == drawn["chosen"].to_list()
    assert drawn["chosen"].any()


def refused(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    capsys.readouterr()
    assert run(["protect", *line]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (said,) = [one for one in captured.err.splitlines() if one.startswith("aftershock: ")]
    return said


def test_a_study_of_another_model(harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_tiny(tmp_path / "other", "llama", rms_norm_eps=1e-5, tie_word_embeddings=False)
    said = refused(capsys, str(other), "--study", str(harmed / "study"), *PLENTY)
    assert "is not the model of the study" in said


def test_a_study_without_harm(edited: Edit, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless = """replace(replace(record, '"subtle"', '"masked"'), '"distorted"', '"masked"')"""
    folder = edited(f"UPDATE trials SET record = {harmless}")
    said = refused(capsys, str(tiny / "llama"), "--study", str(folder), *PLENTY)
    assert "none of the 12 faults" in said


def test_a_study_that_draws_nothing(harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "faults.txt"
    lines.write_text("weight model.layers.1.mlp.down_proj.weight[3,5] flip 30 always\n", encoding="utf-8")
    study = [str(harmed / "study.toml"), "--faults", str(lines), "--out", str(tmp_path / "listed"), "--json"]
    assert run(["study", *study]) == 0
    assert "fault list" in refused(capsys, str(harmed / "llama"), "--study", str(tmp_path / "listed"), *PLENTY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "2"], "--budget is '2'"),
        (["--budget", "little%"], "give a percentage"),
        (["--budget", "2%", "--memory-budget", "-1%"], "--memory-budget is '-1%'"),
        (["--budget", "2%", "--trials", "1"], "1 fresh trials"),
        ([], "--budget"),
    ],
)
def test_budgets_that_are_none(harmed: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, str(harmed / "llama"), "--study", str(harmed / "study"), *options)


def test_no_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no study" in refused(capsys, "demo:smollm2-135m", "--study", str(tmp_path), "--budget", "2%")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"version": 2, "protections": []}',
        '{"version": 1, "protections": [{"kind": "Magic"}]}',
        '{"version": 1, "protections": [{"kind": "Scrub", "evry": 2}]}',
    ],
)
def test_files_that_hold_no_protections(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"protections|version"):
        load_protections(tmp_path / "bad.json")


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_the_report_has_no_place(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    # Before the study is looked for.
    line = ["demo:smollm2-135m", "--study", str(tmp_path / "none"), *PLENTY, "--out", str(tmp_path / out)]
    assert "taken is no folder" in refused(capsys, *line)


def test_a_folder_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="can't be written"):
        require_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_picture_that_can_not_be_written_is_said(planned: Path, tmp_path: Path) -> None:
    record = ProtectionPlan.model_validate_json((planned / "plan.json").read_text(encoding="utf-8"))
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(InputError, match="the report can't be written"):
        write_protection_plan(Planned(load_protections(planned / "protections.json"), record), "", tmp_path)
