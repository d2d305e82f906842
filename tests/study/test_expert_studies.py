"""Studies of experts' weights: how often the struck one is chosen is known, and decides the draw where asked to."""

from pathlib import Path

import pytest

from aftershock.report import trial_frame
from aftershock.study import make_plan, run_study, summarise
from tiny_study import tiny_settings

EXPERTS = {"sites": ["weight"], "components": ["expert"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


def test_a_study_by_use(folder: Path, tmp_path: Path) -> None:
    faults = {**EXPERTS, "draw": "by_use", "bit_classes": ["exponent"]}
    plan = make_plan(tiny_settings(folder, "mixtral", faults=faults, run={"trials": 16, "audit": 1.0}))
    assert plan.digest == make_plan(plan.settings).digest
    study = run_study(plan, tmp_path / "study")
    assert all(study.audits.values())
    for trial in study.trials:
        assert trial.expert is not None
        assert trial.expert_use == plan.use[trial.layer][trial.expert] > 0
        assert plan.faults_of(trial.trial) == plan.faults_of(trial.trial)
    groups = summarise(study).groups["expert_use"]
    assert sum(rate.n for rate in groups) == sum(trial.sdc_share is not None for trial in study.trials)
    frame = trial_frame(study.trials)
    assert frame["expert"].to_list() == [trial.expert for trial in study.trials]
    low, _, high = frame["use"][0].split()
    assert float(low) <= frame["expert_use"][0] <= float(high)


def test_the_use_is_told_under_any_draw_and_of_a_list(folder: Path) -> None:
    plan = make_plan(tiny_settings(folder, "mixtral", faults={**EXPERTS, "draw": "uniform"}))
    assert plan.use.keys() == {0, 1}
    line = "weight model.layers.1.mlp.experts.down_proj[3,4,5] flip 3"
    listed = make_plan(tiny_settings(folder, "mixtral").model_copy(update={"fault_list": (line,)}))
    assert listed.use == plan.use
    assert make_plan(tiny_settings(folder, "mixtral", faults={"components": ["q"]})).use == {}


def test_a_sweep_draws_by_use(folder: Path) -> None:
    settings = tiny_settings(folder, "mixtral", faults={**EXPERTS, "draw": "by_use"}, sweep={"layers": ["0", "1"]})
    plan = make_plan(settings)
    assert all(len(plan.faults_of(number)) == 1 for number in range(plan.trials))
