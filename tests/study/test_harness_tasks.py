"""A study of a task of lm-evaluation-harness: fast and reference executors, this process and workers agree."""

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: make test-lm-eval")

from aftershock.replay import FastExecutor
from aftershock.study import make_plan, run_study, summarise
from aftershock.study.dealing import Dealt
from aftershock.study.worker import Worker, orders_of
from harness_tasks import CHOICE, CLOZE, ROLLING, TEXT, mean, write_task
from inline_team import Inline
from tiny_study import tiny_settings

TASKS = {
    "choice": CHOICE | {"metric_list": [mean("acc_norm")]},
    "cloze": CLOZE | {"metric_list": [mean("acc")]},
    "lm": ROLLING,
    "generation": TEXT,
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_is_studied_by_whoever_runs_it(kind, tmp_path, monkeypatch):
    write_task(tmp_path, TASKS[kind])
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(tmp_path, task={"spec": "lm_eval:animals.yaml"}, faults={"bits": [30]})
    plan = make_plan(settings)
    assert {item.kind for item in plan.task.items} == {kind}
    here = run_study(plan, tmp_path / "here", executor=FastExecutor(plan.model))
    orders = orders_of(plan, "fast")
    monkeypatch.chdir("/")
    dealt = run_study(plan, tmp_path / "dealt", crew=Dealt(plan, Inline(lambda: Worker(orders), 2)))
    assert dealt.records_digest == here.records_digest
    summary = summarise(here)
    assert summary.audit.disagreements == 0
    assert {item.outcome for trial in here.trials for item in trial.items} - {"masked", "unreached"}
