"""Which trials are audited, what agreement proves, and that a wrong executor is found out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.cli import run
from aftershock.replay import FastExecutor, ReferenceExecutor, Run
from aftershock.stats import rule_of_three, wilson
from aftershock.study import ItemRecord, TrialRecord, load_study, make_plan, replay_trial, run_study, summarise
from aftershock.study.audit import FEWEST, audit_of, audited_trials
from aftershock.study.trial import _proof
from tiny_study import tiny_settings


def trial(number: int, changed: bool) -> TrialRecord:
    item = ItemRecord(
        item="a",
        outcome="subtle" if changed else "masked",
        eligible=True,
        right=None,
        output="other" if changed else None,
        score_change=0.0,
        first_difference=None,
        rmse=None,
        kl=None,
    )
    return TrialRecord(
        trial=number,
        faults=(),
        fault_count=0,
        site="none",
        component="none",
        layer=None,
        bits=(),
        bit_class="none",
        stage="none",
        strikes=(),
        strikes_digest="",
        items=(item,),
    )


@given(st.lists(st.booleans(), max_size=400), st.sampled_from([0.02, 0.1, 1.0]), st.integers(0, 9))
def test_a_share_is_audited_half_of_it_where_answers_changed(changed, share, seed):
    trials = [trial(number, one) for number, one in enumerate(changed)]
    audited = audited_trials(trials, share, seed)
    assert len(set(audited)) == len(audited) == min(len(trials), max(FEWEST, -(-len(trials) * share // 1)))
    assert audited == audited_trials(trials, share, seed)
    of_changed = sum(changed[number] for number in audited)
    assert of_changed >= min(sum(changed), len(audited) // 2)


def test_a_share_of_zero_audits_none():
    assert audited_trials([trial(0, True)], 0, 0) == ()


def test_agreement_bounds_the_share_of_disagreements():
    assert audit_of({}) is None
    whole = audit_of(dict.fromkeys(range(300), True))
    assert (whole.trials, whole.disagreements, whole.bound) == (300, 0, rule_of_three(300))
    part = audit_of({1: True, 2: False, 3: True})
    assert (part.trials, part.disagreements, part.bound) == (3, 1, wilson(1, 3).high)


class Wrong(FastExecutor):
    """Takes every trial for masked."""

    def trials(self, jobs):
        for job in jobs:
            golden = self.golden(job.batch, job.faults)
            yield job, Run(golden.items, ())


@pytest.fixture
def settings(tmp_path: Path):
    return tiny_settings(tmp_path)


def test_an_executor_that_is_wrong_is_found_out(settings, tmp_path):
    plan = make_plan(settings)
    summary = summarise(run_study(plan, tmp_path / "wrong", executor=Wrong(plan.model)))
    assert summary.audit.trials == 12
    assert summary.audit.disagreements > 6
    right = summarise(run_study(plan, tmp_path / "right"))
    assert (right.audit.trials, right.audit.disagreements) == (12, 0)
    assert "0 disagree" in right.text()


def test_a_disagreement_is_exit_code_4_after_everything_is_written(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aftershock.replay.FastExecutor", Wrong)
    tiny = ["--model", settings.model.spec, "--task", settings.task.spec, "--trials", "3"]
    assert run(["study", *tiny, "--out", str(tmp_path / "out")]) == 4
    assert "differ from the reference executor" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").is_file()


def test_both_executors_leave_the_same_records_and_the_reference_is_not_audited(settings, tmp_path, capsys):
    tiny = ["study", "--model", settings.model.spec, "--task", settings.task.spec, "--trials", "5", "--json"]
    for executor in ("fast", "reference"):
        assert run([*tiny, "--executor", executor, "--out", str(tmp_path / executor)]) == 0
    fast, reference = load_study(tmp_path / "fast"), load_study(tmp_path / "reference")
    assert fast.records_digest == reference.records_digest
    assert (len(fast.audits), len(reference.audits)) == (5, 0)


def test_what_proves_a_trial_is_kept_and_is_no_part_of_its_result(tmp_path):
    lines = (
        "weight model.layers.0.mlp.up_proj.weight[3,4] add 0.0",
        "activation model.layers.0[3] add 5.0 at prefill:30",
        "activation model.layers.0[3] add 50.0 at first_token",
    )
    settings = tiny_settings(tmp_path).model_copy(update={"fault_list": lines})
    plan = make_plan(settings)
    fast = run_study(plan, tmp_path / "fast")
    reference = run_study(plan, tmp_path / "reference", executor=ReferenceExecutor(plan.model))
    assert [trial.proof for trial in load_study(tmp_path / "fast").trials] == ["converged", "not_activated", None]
    assert [trial.proof for trial in reference.trials] == [None] * 3
    assert fast.records_digest == reference.records_digest
    assert fast.audits == dict.fromkeys(range(3), True)
    assert replay_trial(tmp_path / "fast", 0).equal
    summary = summarise(fast)
    assert [(kind, rate.estimate) for kind, rate in summary.proofs.items()] == [
        ("not_activated", pytest.approx(1 / 3)),
        ("converged", pytest.approx(1 / 3)),
    ]
    assert "converged 33.33 %" in summary.text()
    assert "proved" not in summarise(reference).text()


def test_a_trial_of_several_batches_is_proved_where_all_of_them_are():
    assert _proof(["not_activated", "not_activated"]) == "not_activated"
    assert _proof(["not_activated", "converged"]) == "converged"
    assert _proof(["converged", None]) is None
