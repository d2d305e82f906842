"""Advice on items per fault: what the pilot and the clock say, put together."""

from pathlib import Path

import pytest

from aftershock.cli import run
from aftershock.errors import InputError
from aftershock.stats import clustering, items_per_fault
from aftershock.study import advice as module
from aftershock.study import advise, load_study, make_plan, outlook, run_study, to_toml
from tiny_study import tiny_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advice")
    run_study(make_plan(tiny_settings(folder, faults={"bits": (30,)})), folder / "pilot")
    return folder


def test_the_pilots_correlation_and_the_measured_costs_are_put_together(folder, monkeypatch):
    pilot = load_study(folder / "pilot")
    plan = make_plan(tiny_settings(folder))
    monkeypatch.setattr(module, "trial_costs", lambda plan: (0.9, 0.1))
    found = advise(plan, pilot)
    eligible = [trial for trial in pilot.trials if trial.eligible]
    counts = [len(trial.eligible) for trial in eligible]
    failed = [round(trial.sdc_share * count) for trial, count in zip(eligible, counts, strict=True)]
    assert found.correlation == clustering(failed, counts).intracluster_correlation
    best = items_per_fault(found.correlation, 0.9, 0.1)
    assert found.best == round(min(best, len(plan.task.items)))
    assert found.faults == len(eligible)
    assert "one more fault costs 900.0 ms, one more item 100.0 ms" in outlook(plan, advice=found).text()


def test_costs_are_measured_and_positive(folder):
    fault, item = module.trial_costs(make_plan(tiny_settings(folder)))
    assert fault > 0
    assert item > 0


def test_batches_of_one_can_not_tell(folder):
    with pytest.raises(InputError, match="raise batch_items"):
        module.trial_costs(make_plan(tiny_settings(folder, run={"batch_items": 1})))


def test_a_pilot_is_for_a_dry_run(folder, tmp_path, capsys):
    file = tmp_path / "study.toml"
    file.write_text(to_toml(tiny_settings(folder)), encoding="utf-8")
    assert run(["study", str(file), "--dry-run", "--pilot", str(folder / "pilot")]) == 0
    assert "for each fault would tell most" in capsys.readouterr().out
    assert run(["study", str(file), "--out", str(tmp_path / "out"), "--pilot", str(folder / "pilot")]) == 2
