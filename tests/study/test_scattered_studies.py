"""Studies of scattered faults and of faults in outputs that last: records, audit, replay, report."""

from pathlib import Path

import pytest

from aftershock.faults import parse_faults
from aftershock.report import markdown
from aftershock.study import make_plan, replay_trial, run_study, summarise
from aftershock.study.outlook import outlook
from tiny_study import tiny_settings

WEIGHTS = {"sites": ["weight"], "draw": "uniform", "rate": 3e-4}
SUMS = {"sites": ["accumulator"], "draw": "uniform", "components": ["o", "down"], "activation_trigger": "always"}


def study_of(folder: Path, faults: dict, **keys):
    settings = tiny_settings(folder, faults=faults, run={"trials": 6, "audit": 1.0}, **keys)
    return run_study(make_plan(settings), folder / "study")


def test_a_rate_over_all_weights(tmp_path: Path) -> None:
    study = study_of(tmp_path, WEIGHTS)
    assert summarise(study).audit.disagreements == 0
    plan = make_plan(study.settings)
    for trial in study.trials:
        faults = plan.faults_of(trial.trial)
        assert trial.faults == tuple(map(str, faults))
        # Fewer tensors than words: each is struck in its own number of them.
        assert len(faults) < trial.fault_count
        assert len(trial.strikes) == min(64 * len(faults), 64) if trial.fault_count >= 64 else trial.fault_count
        assert (trial.site, trial.component, trial.layer, trial.stage) == ("weight", "several", None, "persistent")
    assert len({trial.strikes_digest for trial in study.trials}) == 6
    assert replay_trial(tmp_path / "study", 3).equal
    assert "scattered weight" in markdown(study, summarise(study))


@pytest.mark.parametrize(
    "how", [{"rate": 0.01, "bits": [30]}, {"per_pass": 2, "corruption": "add", "value": 2.0**22}], ids=["rate", "count"]
)
def test_sums_of_every_pass(tmp_path: Path, how: dict) -> None:
    study = study_of(tmp_path, {**SUMS, **how}, model={"spec": str(tmp_path / "llama"), "arithmetic": "w8a8"})
    assert summarise(study).audit.disagreements == 0
    for trial in study.trials:
        assert len(trial.faults) == 4
        assert all(fault.spreads for line in trial.faults for fault in parse_faults(line))
        assert (trial.site, trial.stage) == ("accumulator", "persistent")
        assert trial.fault_count > 10
        assert {strike.old_bits != strike.new_bits for strike in trial.strikes} == {True}
    assert replay_trial(tmp_path / "study", 2).equal


def test_a_lane_that_is_stuck_is_one_fault(tmp_path: Path) -> None:
    faults = {"sites": ["activation"], "corruption": "stuck-at-1", "bits": [14], "activation_trigger": "from decode:1"}
    study = study_of(tmp_path, faults)
    assert summarise(study).audit.disagreements == 0
    assert {trial.fault_count for trial in study.trials} == {1}
    assert max(len(trial.strikes) for trial in study.trials) > 10
    assert all(trial.stage == "persistent" and trial.bits == (14,) for trial in study.trials)


def test_the_plan_says_where_it_can_not_be_fast(tmp_path: Path) -> None:
    def pace(faults: dict) -> str:
        return outlook(make_plan(tiny_settings(tmp_path, faults=faults))).pace

    lasting = {"sites": ["activation"], "components": ["up"], "draw": "uniform", "rate": 0.01}
    assert "decoded token by token" in pace({**lasting, "activation_trigger": "from first_token"})
    assert pace({**lasting, "activation_trigger": "at prefill"}) == ""
    assert "written on trial by trial" in pace(WEIGHTS)
    assert pace({}) == ""
