"""Sweeps: every combination of some keys' values, each as often, each with its own rates."""

from dataclasses import replace

import numpy as np
import pytest

from aftershock.errors import InputError
from aftershock.faults import parse_fault
from aftershock.report import markdown, page
from aftershock.study import load_study, make_plan, run_study, summarise, to_toml
from aftershock.study.settings import check_settings
from aftershock.study.swept import swept_rates
from tiny_study import tiny_settings, tiny_tables

FAULTS = {"sites": ["weight"], "draw": "uniform"}
SWEEP = {"rate": [1e-4, 1e-2], "components": [["up", "down"], ["norm"], ["q"]]}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    settings = tiny_settings(folder, faults=FAULTS, sweep=SWEEP, run={"trials": 20})
    return run_study(make_plan(settings), folder / "study")


def test_every_combination_gets_its_trials(study):
    rates = summarise(study).sweep
    assert [one.values for one in rates] == [
        {"rate": rate, "components": components}
        for rate in ("0.0001", "0.01")
        for components in ("up down", "norm", "q")
    ]
    assert [one.trials for one in rates] == [4, 4, 3, 3, 3, 3]
    for trial in study.trials:
        rate, components = trial.stratum.split(", ")
        names = components.removeprefix("components = ").split()
        sites = {parse_fault(line).site.parameter for line in trial.faults}
        assert all(any(name in site for name in names) for site in sites)
        if rate == "rate = 0.01" and names != ["norm"]:
            assert trial.fault_count > 50


def test_rates_are_those_of_the_combinations_own_trials(study):
    right = {record.item: record.right for record in study.golden if record.right is not None}
    for one in summarise(study).sweep:
        name = ", ".join(f"{key} = {value}" for key, value in one.values.items())
        own = [trial for trial in study.trials if trial.stratum == name]
        assert one.trials == len(own)
        shares = [np.mean([item.right is True for item in trial.items if item.item in right]) for trial in own]
        assert one.accuracy.estimate == pytest.approx(np.mean(shares))
        silent = [
            np.mean([item.outcome in ("subtle", "distorted") for item in trial.eligible])
            for trial in own
            if trial.eligible
        ]
        assert one.sdc.estimate == pytest.approx(np.nanmean(silent))
    many = {(one.values["rate"], one.values["components"]): one for one in summarise(study).sweep}
    low, high = many["0.0001", "up down"], many["0.01", "up down"]
    assert high.sdc.estimate + high.due.estimate > low.sdc.estimate + low.due.estimate


def test_the_loss_of_accuracy_is_relative_to_goldens_on_the_same_items(study):
    # As if golden had answered half of the items right, and the trials those that they answer as golden does.
    right = {record.item: number % 2 == 0 for number, record in enumerate(study.golden)}
    golden = tuple(record.model_copy(update={"right": right[record.item]}) for record in study.golden)
    trials = tuple(
        trial.model_copy(
            update={
                "items": tuple(
                    item.model_copy(update={"right": right[item.item] and item.output is None}) for item in trial.items
                )
            }
        )
        for trial in study.trials
    )
    for one in swept_rates(replace(study, golden=golden, trials=trials)):
        name = ", ".join(f"{key} = {value}" for key, value in one.values.items())
        own = [trial for trial in trials if trial.stratum == name]
        faulty = np.mean([np.mean([item.right for item in trial.items]) for trial in own])
        clean = np.mean([np.mean([right[item.item] for item in trial.items]) for trial in own])
        loss, low, high = one.relative_loss
        assert loss == pytest.approx((clean - faulty) / clean)
        assert low <= loss <= high
    unknown = tuple(record.model_copy(update={"right": None}) for record in study.golden)
    for one in swept_rates(replace(study, golden=unknown)):
        assert one.accuracy is one.relative_loss is None


def test_it_can_be_read_back_resumed_and_reported(study, tmp_path):
    assert check_settings({"model": {}, "sweep": SWEEP, "faults": FAULTS}, "here").sweep == {
        "rate": (1e-4, 1e-2),
        "components": (["up", "down"], ["norm"], ["q"]),
    }
    assert "[sweep]\nrate = [0.0001, 0.01]\n" in to_toml(study.settings)
    summary = summarise(study)
    assert "rate = 0.01, components = norm: SDC" in summary.text()
    written = markdown(study, summary)
    assert "## Combination by combination" in written
    assert "| 0.01 | up down | 3 |" in written
    assert "Combination by combination" in page(study, summary)


def test_a_killed_sweep_resumes_to_the_same_records(study, tmp_path):
    plan = make_plan(tiny_settings(tmp_path, faults=FAULTS, sweep=SWEEP, run={"trials": 20}))

    def stop(progress):
        if progress.phase == "trials" and progress.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, tmp_path / "study", watch=stop)
    again = run_study(plan, tmp_path / "study", resume=True)
    assert again.records_digest == study.records_digest
    assert load_study(tmp_path / "study").records_digest == study.records_digest


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"sweep": {"rates": [1e-4]}}, "sweep.rates is no key of"),
        ({"sweep": {"rate": []}}, "sweep.rate has no value"),
        ({"sweep": {"bits": [[1], [2]]}, "run": {"trials": 3}}, "2 combinations need two each"),
        ({"sweep": {"bits": [[1], [2]]}, "run": {"plan": "neyman"}}, "leave until, plan, search"),
        ({"sweep": {"corruption": ["flip", "replace"]}}, "a combination of the sweep is no .faults. table: corruption"),
        ({"sweep": {"rate": 3}}, "sweep.rate"),
    ],
)
def test_a_sweep_that_can_not_be_is_refused(tmp_path, tables, message):
    with pytest.raises(InputError, match=message):
        check_settings({**tiny_tables(tmp_path), **tables}, "here")


def test_bits_and_layers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="bit 40"):
        make_plan(tiny_settings(tmp_path, sweep={"bits": [[3], [40]]}))
    with pytest.raises(InputError, match="layers"):
        make_plan(tiny_settings(tmp_path, sweep={"layers": ["0", "7"]}))
