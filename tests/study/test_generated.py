"""Trials decoded by plain `generate`: which ones, under the same faults, kept whatever happens, apart from results."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_audit import trial

from aftershock.faults import parse_faults
from aftershock.replay import ReferenceExecutor
from aftershock.study import GoldenRecord, Plan, StoredStudy, TrialRecord, load_study, make_plan, run_study, summarise
from aftershock.study.generated import MOST, generated_trial, generated_trials
from aftershock.study.plan import Trial
from tiny_study import tiny_settings, tiny_tables

QUESTIONS = ("what is", "a", "more than that", "tell me", "and so on", "x y z")
LINES = (
    "activation model.layers.0[3] add 50.0 at first_token",
    "activation model.layers.0[3] add 50.0 at prefill:2",
    "activation model.layers.1[5] add 50.0 at decode:3",
    "weight model.layers.1.mlp.up_proj.weight[3,4] replace 40.0 always",
    "weight model.layers.1.mlp.up_proj.weight[3,4] replace 40.0 from decode:2",
)


def golden(kind: str) -> GoldenRecord:
    return GoldenRecord(
        item="a",
        kind=kind,
        group="g",
        prompt="p",
        options=(),
        output="text",
        reference=None,
        right=None,
        score=0.0,
        chance=0.0,
    )


def unreached(record: TrialRecord) -> TrialRecord:
    return record.model_copy(update={"items": (record.items[0].model_copy(update={"outcome": "unreached"}),)})


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=400),
    st.sampled_from([0.0, 0.02, 0.1, 1.0]),
    st.integers(0, 9),
)
def test_a_share_of_the_trials_that_reached_an_answer_is_decoded_whatever_it_came_to(drawn, share, seed):
    reached = [one for one, _ in drawn]
    masked = [trial(n, False) if one else unreached(trial(n, False)) for n, one in enumerate(reached)]
    chosen = generated_trials(masked, [golden("generation")], share, seed)
    assert len(set(chosen)) == len(chosen) == min(sum(reached), MOST, -(-len(reached) * share // 1))
    assert all(reached[number] for number in chosen)
    changed = [trial(n, new) if one else unreached(trial(n, new)) for n, (one, new) in enumerate(drawn)]
    assert chosen == generated_trials(changed, [golden("generation")], share, seed)
    assert generated_trials(masked, [golden("choice")], share, seed) == ()
    # An executor's proofs decide nothing.
    proved = [one.model_copy(update={"proof": "converged"}) for one in masked]
    assert chosen == generated_trials(proved, [golden("generation")], share, seed)


def written(folder: Path, items: int = 3, audit: float = 1) -> Plan:
    """A plan whose items are all generated, in batches of so many, under the faults of LINES."""
    task = folder / "questions.jsonl"
    tables = tiny_tables(folder, run={"items_per_fault": 3, "batch_items": items, "audit": audit})
    task.write_text(
        "\n".join(
            f'{{"id": "{n}", "kind": "generation", "group": "g", "contexts": ["{text}"], "max_new_tokens": 8}}'
            for n, text in enumerate(QUESTIONS)
        ),
        encoding="utf-8",
    )
    settings = tiny_settings(folder, **{**tables, "task": {"spec": str(task)}})
    return make_plan(settings.model_copy(update={"fault_list": LINES}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def study(folder: Path) -> StoredStudy:
    return run_study(written(folder), folder / "study")


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("line", LINES)
def test_faults_strike_the_same_tokens_in_every_batch_size(folder: Path, items: int, line: str):
    plan = written(folder, items=items)
    # In fp32 another shape alone changes no answer.
    found = generated_trial(ReferenceExecutor(plan.model), plan, Trial(7, (0, 1), parse_faults(line), False))
    assert found.trial == 7
    assert [one.item for one in found.items] == [item.id for batch in plan.batches[:2] for item in batch.items]
    assert [one.whole for one in found.items] == [one.reshaped for one in found.items]
    assert any(one.whole.output is not None for one in found.items)


def test_answers_in_fp32_are_those_of_generate(study):
    found = summarise(study).against_generate
    changed = [item for record in study.trials for item in record.items if item.output is not None]
    assert len(changed) > 4
    assert (found.trials, found.answers) == (
        5,
        sum(item.outcome != "unreached" for r in study.trials for item in r.items),
    )
    assert found.disagreement.estimate == found.batch_size.estimate == 0
    assert (found.sdc.records_alone, found.sdc.generate_alone, found.sdc.p_value) == (0, 0, 1)
    assert found.sdc.records.estimate == found.sdc.generate.estimate > 0


def test_decoded_trials_are_no_part_of_the_results_and_do_not_hang_on_the_executor(study, folder):
    plan = written(folder)
    reference = run_study(plan, folder / "reference", executor=ReferenceExecutor(plan.model))
    assert reference.generated == study.generated
    assert (len(reference.audits), len(reference.generated)) == (0, 5)
    assert replace(study, generated=()).records_digest == study.records_digest


def test_a_study_stopped_while_it_decodes_goes_on_where_it_was(study, folder):
    class StopStudyError(Exception):
        pass

    def stop(progress):
        if progress.phase == "generate" and progress.done == 2:
            raise StopStudyError

    steps = []
    with pytest.raises(StopStudyError):
        run_study(written(folder), folder / "stopped", watch=stop)
    assert len(load_study(folder / "stopped").generated) == 2
    resumed = run_study(written(folder), folder / "stopped", resume=True, watch=steps.append)
    assert resumed.generated == study.generated
    assert [step.done for step in steps if step.phase == "generate"] == [2, 3, 4, 5]


def test_no_audit_decodes_none(folder):
    study = run_study(written(folder, audit=0), folder / "none")
    assert study.generated == ()
    assert summarise(study).against_generate is None


def test_a_model_that_raises_under_the_fault_is_a_crash(folder, monkeypatch):
    plan = written(folder)
    head = plan.model.module.lm_head
    clean, forward = head.weight.clone(), head.forward

    def fragile(hidden: torch.Tensor) -> torch.Tensor:
        if not torch.equal(head.weight, clean):
            raise IndexError("out of range")
        return forward(hidden)

    monkeypatch.setattr(head, "forward", fragile)
    faults = parse_faults("weight model.embed_tokens.weight[3,3] flip 30 always")
    found = generated_trial(ReferenceExecutor(plan.model), plan, Trial(0, (0,), faults, False))
    assert {one.whole.outcome for one in found.items} == {one.reshaped.outcome for one in found.items} == {"crash"}
