"""What each command does, prints and returns."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from aftershock.cli import app, run
from aftershock.cli.output import StudyProgress
from aftershock.models import demo_models
from aftershock.study import Progress, load_study, make_plan
from tiny_study import tiny_settings

FAULTS = """
# two faults, then a pair
weight model.norm.weight[3] flip 14 always
activation model.layers.0.mlp.down_proj[1] replace nan at first_token
weight model.norm.weight[3] add 0.001 always & weight model.norm.weight[4] add 0.001 always
"""

Run = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must succeed, or end with exit code `code`; gives its stdout."""

    def run_command(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        found = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert found == code, printed.err
        return printed.out

    return run_command


def one_object(printed: str) -> dict[str, Any]:
    """The JSON object that is all of stdout, on one line."""
    assert printed.count("\n") == 1
    assert printed.endswith("\n")
    found = json.loads(printed)
    assert isinstance(found, dict)
    return found


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# study


def test_a_search_strikes_weights_and_prints_their_boundary_bits(command, tiny, tmp_path):
    file = tmp_path / "search.toml"
    file.write_text(
        "[run]\nnoise = 2\ntraced = 0\nitems_per_fault = 2\nbatch_items = 2\naudit = 0.0\n", encoding="utf-8"
    )
    task = tmp_path / "texts.jsonl"
    text = {"id": "t", "kind": "generation", "group": "tiny", "contexts": ["what is"], "max_new_tokens": 3}
    task.write_text(json.dumps(text), encoding="utf-8")
    options = ("--model", tiny / "llama", "--task", task, "--search", 1)
    found = one_object(command("study", file, *options, "--out", tmp_path / "out", "--json"))
    (value,) = found["search"]["values"]
    assert value["site"].startswith("weight ")
    assert sorted(bit for side in value["sides"] for bit in side["bits"]) == list(range(32))
    assert one_object(command("report", tmp_path / "out", "--json")) == found
    assert "chosen by a search" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_study_prints_one_json_object(command, tiny, tmp_path, finished):
    found = one_object(command("study", tiny / "study.toml", "--out", tmp_path / "out", "--json"))
    stored = load_study(tmp_path / "out")
    assert found["plan_digest"] == stored.plan_digest
    assert found["records_digest"] == stored.records_digest == load_study(finished).records_digest
    assert found["trials"] == found["planned"] == 12
    assert sum(found["outcomes"].values()) == found["sdc_rate"]["n_pairs"] > 0
    assert found["sdc_rate"]["low"] <= found["sdc_rate"]["estimate"] <= found["sdc_rate"]["high"]
    assert found["sdc_rate"]["excess_low"] <= found["sdc_rate"]["excess"] <= found["sdc_rate"]["excess_high"]
    assert {"estimate", "low", "high", "n"} <= found["noise_floor"].keys()
    assert found["golden"]["aa_disagreements"] == 0
    assert found["seconds"] > 0


def test_study_tells_a_person_the_plan_and_the_result(command, tiny, edited):
    folder = edited("DELETE FROM trials WHERE trial > 9")
    printed = command("study", tiny / "study.toml", "--out", folder, "--resume")
    stored = load_study(folder)
    for word in (stored.plan_digest[:12], "sizing", "SDC rate", "over noise", "DUE rate", stored.records_digest):
        assert word in printed
    assert printed.endswith(f"report: {folder / 'report.html'}\n")


def test_study_leaves_records_report_and_tables(finished):
    assert {path.name for path in finished.iterdir()} >= {"study.sqlite", "report.html", "report.md", "trials.csv"}


def test_study_reports_progress_on_stderr(tiny, tmp_path, capsys):
    assert run(["study", str(tiny / "study.toml"), "--out", str(tmp_path / "out"), "--trials", "3", "--json"]) == 0
    errors = capsys.readouterr().err
    for word in ("loading", "golden and A/A run", "noise floor", "trials: 3/3"):
        assert word in errors


def test_dry_run_writes_nothing(command, tiny, tmp_path, finished):
    before = files_below(tiny)
    printed = command("study", tiny / "study.toml", "--dry-run", "--out", tmp_path / "out")
    assert files_below(tiny) == before
    assert not (tmp_path / "out").exists()
    for word in (load_study(finished).plan_digest[:12], "12 trials", "sizing", "time "):
        assert word in printed


def test_dry_run_prints_one_json_object(command, tiny, finished):
    found = one_object(command("study", tiny / "study.toml", "--dry-run", "--json"))
    assert found["plan_digest"] == load_study(finished).plan_digest
    assert found["trials"] == 12
    assert found["seconds"] > 0
    assert found["sizes"]["1 points"] > found["sizes"]["5 points"] > 0


def test_options_override_the_study_file(command, tiny, tmp_path):
    other = tiny_settings(tmp_path, "gpt2", model={"dtype": "bfloat16"}, run={"trials": 4, "seed": 3})
    options = ["--model", tmp_path / "gpt2", "--task", tmp_path / "task.jsonl", "--dtype", "bfloat16"]
    numbers = ["--trials", 4, "--seed", 3, "--device", "cpu"]
    found = one_object(command("study", tiny / "study.toml", "--dry-run", "--json", *options, *numbers))
    assert found["trials"] == 4
    assert found["plan_digest"] == make_plan(other).digest


def test_options_stand_in_for_the_study_file(command, tiny, tmp_path):
    options = ["--model", tiny / "llama", "--task", tiny / "task.jsonl", "--trials", 2]
    found = one_object(command("study", *options, "--out", tmp_path / "out", "--json"))
    assert found["trials"] == 2
    assert load_study(tmp_path / "out").settings.model.spec == str(tiny / "llama")


@pytest.fixture(scope="module")
def own_faults(tiny: Path) -> Path:
    """The --out folder of a study of FAULTS."""
    (tiny / "faults.txt").write_text(FAULTS, encoding="utf-8")
    options = ["--faults", str(tiny / "faults.txt"), "--out", str(tiny / "own-faults"), "--json"]
    assert run(["study", str(tiny / "study.toml"), *options]) == 0
    return tiny / "own-faults"


def test_own_faults_are_run_a_trial_a_line(own_faults):
    lines = [line for line in FAULTS.splitlines() if line and not line.startswith("#")]
    stored = load_study(own_faults)
    assert [" & ".join(trial.faults) for trial in stored.trials] == lines
    assert {item.outcome for item in stored.trials[1].items} == {"non_finite"}


def test_interrupted_study_goes_on_to_the_same_records(command, tiny, tmp_path, finished, monkeypatch, capsys):
    study = ["study", str(tiny / "study.toml"), "--out", str(tmp_path / "out"), "--json"]

    def press_ctrl_c(_: StudyProgress, progress: Progress) -> None:
        if progress.phase == "trials" and progress.done == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StudyProgress, "__call__", press_ctrl_c)
        assert run(study) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "go on with --resume" in printed.err
    assert len(load_study(tmp_path / "out").trials) == 5
    capsys.readouterr()
    assert run([*study, "--resume"]) == 0
    printed = capsys.readouterr()
    resumed = one_object(printed.out)
    assert resumed["trials"] == 12
    # The rate shown so far counts the faults of both sessions.
    assert f"n = {resumed['sdc_rate']['n_faults']})" in printed.err
    assert resumed["records_digest"] == load_study(finished).records_digest


# report


def test_report_is_written_again(command, edited):
    folder = edited()
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite"}
    for name in written:
        (folder / name).unlink()
    assert command("report", folder) == f"report: {folder / 'report.html'}\n"
    assert {path.name for path in folder.iterdir() if path.suffix != ".sqlite"} == set(written)
    assert (folder / "trials.csv").read_bytes() == written["trials.csv"]


def test_report_of_part_of_a_study(command, edited):
    found = one_object(command("report", edited("DELETE FROM trials WHERE trial > 6"), "--json"))
    assert found["trials"] == 7
    assert found["planned"] == 12


# replay


def test_replay_equals_the_record(command, finished):
    printed = command("replay", finished, 3)
    stored = load_study(finished).trials[3]
    assert stored.faults[0] in printed
    assert "layer 1" in printed
    assert printed.endswith("equals the stored record, bit for bit\n")
    found = one_object(command("replay", finished, 3, "--json"))
    assert found["equal"]
    assert found["same_plan"]
    assert found["stored"]["trial"] == found["found"]["trial"] == 3
    assert len(found["found"]["residual_error"]) == 3


TAMPERING = 'UPDATE trials SET record = replace(record, \'"outcome":"masked"\', \'"outcome":"subtle"\')'


def test_replay_of_a_tampered_record_differs(command, finished, edited):
    trial = next(one.trial for one in load_study(finished).trials if any(i.outcome == "masked" for i in one.items))
    folder = edited(TAMPERING)
    assert command("replay", folder, trial, code=4).endswith("differs from the stored record\n")
    assert not one_object(command("replay", folder, trial, "--json", code=4))["equal"]


def test_replay_under_other_circumstances_is_no_failure(command, edited):
    folder = edited(TAMPERING, "UPDATE meta SET value = '\"another\"' WHERE key = 'plan_digest'")
    assert "which was made with other versions" in command("replay", folder, 0)


# diff


def test_diff_of_a_study_with_itself(command, finished):
    found = one_object(command("diff", finished, finished, "--json"))
    assert found["same_plan"]
    assert found["same_records"]
    assert found["settings"] == {}
    assert found["changed_outcomes"] == 0
    assert found["difference"]["estimate"] == 0
    assert found["difference"]["paired"]
    printed = command("diff", finished, finished)
    assert "plans      the same; records the same too" in printed
    assert "chance can't be ruled out" in printed


def test_diff_pairs_the_same_faults(command, tiny, own_faults, tmp_path):
    options = ["--faults", tiny / "faults.txt", "--dtype", "bfloat16", "--out", tmp_path / "out", "--json"]
    command("study", tiny / "study.toml", *options)
    found = one_object(command("diff", own_faults, tmp_path / "out", "--json"))
    assert not found["same_plan"]
    assert found["settings"]["model.dtype"] == ["float32", "bfloat16"]
    assert found["difference"]["paired"]
    assert found["difference"]["n"] <= 3
    assert found["changed_outcomes"] is not None
    assert "paired by" in command("diff", own_faults, tmp_path / "out")


def test_diff_of_other_faults_is_unpaired(command, finished, own_faults):
    found = one_object(command("diff", finished, own_faults, "--json"))
    assert not found["difference"]["paired"]
    assert found["changed_outcomes"] is None
    assert "unpaired" in command("diff", finished, own_faults)


# models


def test_models_are_listed(command):
    printed = command("models")
    for demo in demo_models():
        assert f"demo:{demo.name}" in printed
    found = one_object(command("models", "--json"))
    assert [(one["spec"], one["size"]) for one in found["models"]] == [
        (f"demo:{demo.name}", demo.size) for demo in demo_models()
    ]


# help


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command below, with the words that name it."""
    inner = [
        found for name, below in getattr(command, "commands", {}).items() for found in commands(below, (*path, name))
    ]
    return [(path, command), *inner]


@pytest.mark.parametrize(
    ("path", "described"),
    commands(get_command(app)),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_has_help(command, path, described):
    printed = command(*path, "--help")
    assert f"Usage: {' '.join(('aftershock', *path))}" in printed
    assert described.help
    for parameter in described.params:
        assert parameter.help, parameter.name


def test_no_arguments_show_the_help(command):
    assert command() == command("--help")


def test_help_loads_neither_torch_nor_transformers():
    code = (
        "import sys, aftershock; from aftershock.cli import run; code = run(['study', '--help']); "
        "sys.exit(code or ' '.join({'torch', 'transformers', 'numpy', 'altair'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout


def test_internal_error_is_told_apart_from_bad_input(finished, monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("aftershock.study.summarise", broken)
    assert run(["report", str(finished), "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "ZeroDivisionError: oh" in printed.err
    assert printed.err.endswith("aftershock: internal error; please report it with the lines above\n")


CAMPAIGN = """
[model]
spec = "{folder}/llama"
[task]
spec = "{folder}/task.jsonl"
[run]
items_per_fault = 4
batch_items = 2
noise = 2
threads = 1
[[study]]
name = "few"
run.trials = 3
[[study]]
name = "many"
across.run.trials = [5, 4]
"""


def test_a_file_of_several_studies_runs_them_all(command, tiny, tmp_path):
    file = tmp_path / "campaign.toml"
    file.write_text(CAMPAIGN.format(folder=tiny), encoding="utf-8")
    assert "3 studies, 12 trials" in command("study", file, "--dry-run")
    found = one_object(command("study", file, "--out", tmp_path / "out", "--seed", 3, "--json"))
    assert [(one["name"], one["summary"]["trials"]) for one in found["studies"]] == [
        ("few", 3),
        ("many-5", 5),
        ("many-4", 4),
    ]
    for place in ("", "few", "many-5"):
        assert (tmp_path / "out" / place / "report.html").is_file()
    assert load_study(tmp_path / "out" / "few").settings.run.seed == 3
    assert one_object(command("report", tmp_path / "out", "--json")) == found


def test_studies_that_can_not_run_are_told_at_the_end(command, tiny, tmp_path, capsys):
    file = tmp_path / "campaign.toml"
    text = CAMPAIGN.format(folder=tiny) + '[[study]]\nname = "bad"\ntask.spec = "no.jsonl"\n'
    file.write_text(text, encoding="utf-8")
    assert run(["study", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "1 of 4 studies did not come to their end" in capsys.readouterr().err
    assert "no.jsonl" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_options_for_one_study_are_refused_for_several(command, tiny, tmp_path, capsys):
    file = tmp_path / "campaign.toml"
    file.write_text(CAMPAIGN.format(folder=tiny), encoding="utf-8")
    assert run(["study", str(file), "--search", "3", "--out", str(tmp_path / "out")]) == 2
    assert "--search goes with one study alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(given: str | None, expected: str) -> None:
    script = (
        "import atexit, os, sys; from aftershock.cli import main; assert 'torch' not in sys.modules; "
        "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'])); sys.argv[1:] = ['--help']; main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.splitlines()[-1] == expected
