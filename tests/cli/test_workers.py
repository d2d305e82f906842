"""`study --workers` and `--ray`: the same result, the workers' refusals with their own exit codes."""

import json

import pytest

from aftershock.cli import run
from aftershock.errors import ContractError, InputError
from aftershock.study.worker import Failed, Worker
from inline_team import Inline

pytestmark = pytest.mark.workers


@pytest.fixture
def workers(monkeypatch):
    """Workers in this process in place of processes; the class of them can be set."""
    made = {"class": Worker}
    monkeypatch.setattr(
        "aftershock.study.hiring.Processes", lambda orders, size: Inline(lambda: made["class"](orders), size, [0, 1])
    )
    return made


def test_workers_leave_the_same_records(tiny, finished, tmp_path, workers, capsys):
    capsys.readouterr()
    assert run(["study", str(tiny / "study.toml"), "--out", str(tmp_path / "out"), "--json", "--workers", "2"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert run(["report", str(finished)]) == 0
    from aftershock.study import load_study

    assert summary["records_digest"] == load_study(finished).records_digest
    assert summary["audit"]["disagreements"] == 0


@pytest.mark.parametrize(("error", "code"), [(InputError("no such file"), 2), (ContractError("it did not fire"), 4)])
def test_a_workers_refusal_has_its_exit_code(tiny, tmp_path, workers, capsys, error, code):
    class Refusing(Worker):
        def load(self):
            yield Failed(error)

    workers["class"] = Refusing
    assert run(["study", str(tiny / "study.toml"), "--out", str(tmp_path / "out"), "--workers", "2"]) == code
    assert str(error) in capsys.readouterr().err.splitlines()[-1]


def test_ray_that_is_not_installed_is_said_at_once(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aftershock.study.hiring.find_spec", lambda name: None)
    assert run(["study", str(tiny / "study.toml"), "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == "aftershock: --ray needs Ray, which is not installed here: install aftershock[ray], or use --workers"
    assert not (tmp_path / "out").exists()


def test_no_workers_are_no_choice(tiny, tmp_path, capsys):
    assert run(["study", str(tiny / "study.toml"), "--out", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "--workers" in capsys.readouterr().err
