"""A study from plan to records."""

from pathlib import Path

import pytest
import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import labels
from aftershock.models import model_hash
from aftershock.replay import ModelCrashedError, ReferenceExecutor
from aftershock.study import DUE, SDC, Plan, StoredStudy, load_study, make_plan, outlook, run_study, summarise
from aftershock.study.trial import trial_records
from tiny_study import ITEMS, tiny_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return make_plan(tiny_settings(folder))


@pytest.fixture(scope="module")
def study(plan: Plan, folder: Path) -> StoredStudy:
    return run_study(plan, folder / "study")


def test_every_trial_and_every_used_item_has_its_record(plan, study):
    assert [trial.trial for trial in study.trials] == list(range(12))
    used = {item.id for batch in plan.used_batches for item in batch.items}
    assert {record.item for record in study.golden} == used
    for trial in study.trials:
        expected = [item.id for batch in plan.batches_of(trial.trial) for item in batch.items]
        assert [item.item for item in trial.items] == expected


def test_a_rerun_without_faults_is_bit_identical(study):
    assert study.aa_disagreements == 0


def test_each_sweep_of_the_noise_floor_covers_every_used_item(study):
    golden = [record.item for record in study.golden]
    for sweep in (0, 1):
        records = [record for record in study.noise if record.sweep == sweep]
        assert [item.item for record in records for item in record.items] == golden
    assert {record.perturbation for record in study.noise if record.sweep == 0} == {"another batch shape"}
    weights = [record.perturbation for record in study.noise if record.sweep == 1]
    assert all(" flip 0 always" in weight for weight in weights)
    assert len(set(weights)) == len(weights) > 1


def test_records_keep_the_words_before_and_after(study):
    for trial in study.trials:
        assert trial.fault_count == 1
        for strike in trial.strikes:
            assert strike.old_bits ^ strike.new_bits == sum(1 << bit for bit in trial.bits)


def test_a_fault_strikes_every_item_it_reached(study):
    for trial in study.trials:
        reached = {item.item for item in trial.items if item.outcome != "unreached"}
        if trial.site == "activation":
            assert {strike.item for strike in trial.strikes} == reached
        else:
            assert len(trial.strikes) == len({strike.index for strike in trial.strikes})


def test_unreached_items_are_not_eligible(study):
    for trial in study.trials:
        for item in trial.items:
            assert not (item.outcome == "unreached" and item.eligible)


def test_traced_trials_follow_the_error_through_every_layer(plan, study):
    traced = [trial for trial in study.trials if trial.residual_error is not None]
    assert [plan.traced(trial.trial) for trial in study.trials].count(True) == len(traced) == 3
    for trial in traced:
        assert len(trial.residual_error) == 1 + plan.model.components.layers


def test_trial_is_a_function_of_seed_and_index(folder, plan, study):
    longer = make_plan(tiny_settings(folder, run={"trials": 20}))
    other = make_plan(tiny_settings(folder, run={"seed": 1}))
    for trial in range(12):
        assert longer.faults_of(trial) == plan.faults_of(trial)
        assert longer.batches_of(trial) == plan.batches_of(trial)
    assert any(other.faults_of(trial) != plan.faults_of(trial) for trial in range(12))


def test_two_runs_have_the_same_records_digest(folder, study):
    again = run_study(make_plan(tiny_settings(folder)), folder / "again")
    assert again.records_digest == study.records_digest
    assert again.plan_digest == study.plan_digest


def test_digest_does_not_depend_on_where_the_model_and_task_lie(folder, study, tmp_path):
    moved = make_plan(tiny_settings(tmp_path))
    assert moved.settings.model.spec != study.settings.model.spec
    assert moved.digest == study.plan_digest


@pytest.mark.parametrize(
    "tables",
    [{"run": {"seed": 9}}, {"run": {"batch_items": 3}}, {"model": {"dtype": "bfloat16"}}, {"faults": {"bits": (3,)}}],
)
def test_what_decides_results_decides_the_plan_digest(folder, study, tables):
    assert make_plan(tiny_settings(folder, **tables)).digest != study.plan_digest


def test_an_interrupted_study_resumes_to_the_same_records(folder, study):
    class StopStudyError(Exception):
        pass

    def stop(progress):
        if progress.phase == "trials" and progress.done == 5:
            raise StopStudyError

    settings = tiny_settings(folder)
    with pytest.raises(StopStudyError):
        run_study(make_plan(settings), folder / "stopped", watch=stop)
    assert len(load_study(folder / "stopped").trials) == 5
    resumed = run_study(make_plan(settings), folder / "stopped", resume=True)
    assert resumed.records_digest == study.records_digest


def test_resuming_another_study_is_refused(folder, study):
    with pytest.raises(InputError, match="holds another study"):
        run_study(make_plan(tiny_settings(folder, run={"seed": 5})), folder / "study", resume=True)


def test_a_folder_with_a_study_is_not_overwritten(plan, study, folder):
    with pytest.raises(InputError, match="holds a study already"):
        run_study(plan, folder / "study")


def test_a_model_changed_behind_the_study_is_an_error(folder):
    plan = make_plan(tiny_settings(folder))

    def meddle(progress):
        if progress.phase == "trials" and progress.done == 3:
            next(iter(plan.model.module.parameters())).view(-1)[5] += 1

    with pytest.raises(ContractError, match="no longer the one"):
        run_study(plan, folder / "meddled", watch=meddle)


def test_the_model_is_checked_after_ctrl_c(folder):
    plan = make_plan(tiny_settings(folder))
    before = [parameter.clone() for parameter in plan.model.module.parameters()]

    def interrupt(progress):
        if progress.phase == "trials":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, folder / "ctrl-c", watch=interrupt)
    assert all(torch.equal(a, b) for a, b in zip(before, plan.model.module.parameters(), strict=True))


def test_summary_counts_what_the_records_hold(study):
    summary = summarise(study)
    eligible = [item for trial in study.trials for item in trial.items if item.eligible]
    assert sum(summary.outcomes.values()) == len(eligible) == summary.sdc_rate.n_pairs
    shares = [
        sum(item.outcome in SDC for item in trial.eligible) / len(trial.eligible)
        for trial in study.trials
        if trial.eligible
    ]
    assert summary.sdc_rate.estimate == pytest.approx(sum(shares) / len(shares))
    assert summary.sdc_rate.n_faults == len(shares)
    assert summary.sdc_rate.low <= summary.sdc_rate.estimate <= summary.sdc_rate.high
    due = [sum(item.outcome in DUE for item in t.eligible) / len(t.eligible) for t in study.trials if t.eligible]
    assert summary.due_rate.estimate == pytest.approx(sum(due) / len(due))
    assert summary.golden.items == len(study.golden)
    assert {rate.label for rate in summary.groups["component"]} == {t.component for t in study.trials if t.eligible}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mixtral"])
def test_other_families_and_dtypes(folder, tmp_path, family, dtype):
    settings = tiny_settings(folder, family, model={"spec": str(folder / family), "dtype": dtype}, run={"trials": 6})
    study = run_study(make_plan(settings), tmp_path / "study")
    assert len(study.trials) == 6
    assert study.aa_disagreements == 0


def test_a_rate_draws_a_binomial_number_of_faults_and_none_is_masked(folder, tmp_path):
    faults = {"sites": ("weight",), "draw": "uniform", "rate": 1e-6, "bit_classes": ("mantissa",)}
    study = run_study(make_plan(tiny_settings(folder, faults=faults)), tmp_path / "study")
    counts = [trial.fault_count for trial in study.trials]
    assert 0 in counts
    assert max(counts) > 0
    for trial in study.trials:
        if trial.fault_count == 0:
            assert {item.outcome for item in trial.items} == {"masked"}
            assert trial.component == "none"


def test_many_faults_keep_the_first_lines_and_a_digest_of_all(folder, tmp_path):
    faults = {"sites": ("weight",), "draw": "uniform", "count": 200, "bit_classes": ("mantissa",)}
    study = run_study(make_plan(tiny_settings(folder, faults=faults, run={"trials": 2})), tmp_path / "study")
    first, second = study.trials
    assert first.fault_count == 200
    assert len(first.faults) == len(first.strikes) == 64
    assert first.strikes_digest != second.strikes_digest


def test_own_fault_list_runs_in_its_order(folder, tmp_path):
    lines = (
        "weight model.norm.weight[3] flip 30 always",
        "activation model.layers.0.mlp.down_proj[1] replace nan at first_token",
    )
    content = tiny_settings(folder).model_copy(update={"fault_list": lines})
    study = run_study(make_plan(content), tmp_path / "study")
    assert tuple(trial.faults[0] for trial in study.trials) == lines
    assert {item.outcome for item in study.trials[1].items} == {"non_finite"}


@pytest.mark.parametrize("way", ["drawn", "listed"])
def test_attention_is_computed_step_by_step_where_its_scores_are_struck(folder, tmp_path, way):
    settings = tiny_settings(folder, faults={"sites": ["score", "probability"]}, run={"trials": 6})
    if way == "listed":
        line = "probability model.layers.0.self_attn[1,0.5] replace 1.0 at first_token"
        settings = tiny_settings(folder).model_copy(update={"fault_list": (line,)})
    plan = make_plan(settings)
    study = run_study(plan, tmp_path / "study")
    assert plan.model.attention == study.settings.model.attention == "eager"
    assert {trial.site for trial in study.trials} <= {"score", "probability"}
    assert any(trial.strikes for trial in study.trials)
    assert make_plan(tiny_settings(folder)).settings.model.attention == "sdpa"


def test_scores_of_a_fused_kernel_are_refused(folder):
    settings = tiny_settings(folder, model={"attention": "sdpa"}, faults={"sites": ["score"]})
    with pytest.raises(InputError, match='load it with attention = "eager"'):
        make_plan(settings)


@pytest.mark.parametrize("storage", ["int4", "fp8_e5m2"])
def test_a_study_of_stored_words_names_them_and_what_became_of_the_weights(folder, tmp_path, storage):
    faults = {"sites": ["stored"], "components": ["up", "v"]}
    run = {"trials": 16, "audit": 1.0}
    plan = make_plan(tiny_settings(folder, model={"storage": storage}, faults=faults, run=run))
    study = run_study(plan, tmp_path / "study")
    assert len(study.audits) == 16
    assert all(study.audits.values())
    scales = 0
    for trial in study.trials:
        (line,) = trial.faults
        assert line.startswith("stored model.layers.")
        assert trial.site == "stored"
        word, *weights = trial.strikes
        assert word.tensor == line.split()[1].partition("[")[0]
        assert bin(word.old_bits ^ word.new_bits).count("1") == 1
        assert {(one.fault, one.tensor) for one in weights} <= {(0, word.tensor.rpartition(".")[0])}
        scales += trial.bit_class.startswith("scale")
        assert len(weights) == 1 or trial.bit_class != "quant"
    assert 0 < scales < 16
    assert study.settings.model.storage == storage


def test_a_stored_word_that_changes_no_weight_is_masked(folder, tmp_path):
    settings = tiny_settings(folder, model={"storage": "int8", "dtype": "bfloat16"})
    line = "stored model.layers.0.mlp.up_proj.weight.scale[3,0] flip 0"
    study = run_study(make_plan(settings.model_copy(update={"fault_list": (line,)})), tmp_path / "study")
    (trial,) = study.trials
    word, weight = trial.strikes
    assert (word.tensor, weight.tensor) == (f"{weight.tensor}.scale", "model.layers.0.mlp.up_proj.weight")
    assert weight.old_bits == weight.new_bits
    assert {item.outcome for item in trial.items} == {"masked"}


def test_a_study_of_accumulators(folder, tmp_path):
    faults = {"sites": ["accumulator"], "bits": [30, 14], "components": ["down", "o"]}
    tables = {
        "model": {"arithmetic": "w8a8", "dtype": "bfloat16"},
        "faults": faults,
        "run": {"trials": 20, "audit": 1.0},
    }
    study = run_study(make_plan(tiny_settings(folder, **tables)), tmp_path / "study")
    assert len(study.audits) == 20
    assert all(study.audits.values())
    assert {trial.site for trial in study.trials} == {"accumulator"}
    assert {trial.bits for trial in study.trials} == {(30,), (14,)}
    assert {trial.component for trial in study.trials} == {"down", "o"}
    assert all(strike.tensor.endswith(".accumulator") for trial in study.trials for strike in trial.strikes)


def test_amounts_added_to_accumulators_are_whole_numbers(folder):
    faults = {"sites": ["accumulator"], "corruption": "add", "uniform": [-1000.0, 1000.0]}
    plan = make_plan(tiny_settings(folder, model={"arithmetic": "w8a8"}, faults=faults))
    amounts = [plan.faults_of(number)[0].corruption.amount for number in range(12)]
    assert all(amount.is_integer() for amount in amounts)
    assert len(set(amounts)) > 8
    with pytest.raises(InputError, match="accumulators hold whole numbers"):
        tiny_settings(folder, faults={**faults, "uniform": [0.5, 1.0]})


def test_stored_faults_of_a_list_that_do_not_go_together_are_refused_before_the_run(folder):
    settings = tiny_settings(folder, model={"storage": "int8"})
    name = "model.layers.0.mlp.up_proj.weight"
    line = f"stored {name}.quant[3,1] flip 3 & stored {name}.quant[3,2] flip 3 at decode:1"
    with pytest.raises(InputError, match="shares a stored row"):
        make_plan(settings.model_copy(update={"fault_list": (line,)}))


def test_accumulators_are_studied_apart(folder):
    with pytest.raises(InputError, match="study them apart"):
        tiny_settings(folder, faults={"sites": ["accumulator", "weight"]})
    with pytest.raises(InputError, match='load it with arithmetic = "w8a8"'):
        make_plan(tiny_settings(folder, faults={"sites": ["accumulator"]}))


@pytest.mark.parametrize("sites", [["accumulator"], ["score", "head_output"], ["key", "probability"], ["stored"]])
def test_strata_of_every_kind_of_site_bear_their_trials_labels(folder, tmp_path, sites):
    model = {"accumulator": {"arithmetic": "w8a8"}, "stored": {"storage": "int8"}}.get(sites[0], {})
    faults = {"sites": sites, "components": ["o", "qk", "sv", "softmax", "kv"], "bits": [3, 30, 31]}
    run = {"plan": "neyman", "trials": 120, "strata": ["site", "bit_class"], "noise": 2, "items_per_fault": 2}
    plan = make_plan(tiny_settings(folder, model=model, faults=faults, run=run))
    assert sum(stratum.chance for stratum in plan.strata) == pytest.approx(1)
    for number in range(30):
        trial = plan.trial(number)
        label = labels(trial.faults, plan.model.components, plan.model.format)
        assert trial.place.stratum.name == f"{label.site} {label.bit_class}"


def test_a_stratified_study_of_stored_words(folder, tmp_path):
    faults = {"sites": ["stored"], "weight_trigger": "transient", "components": ["q", "down"]}
    run = {"plan": "neyman", "strata": ["bit_class", "stage"], "trials": 50, "pilot": 30, "audit": 1.0}
    tables = {"model": {"storage": "int4", "dtype": "bfloat16"}, "faults": faults, "run": run}
    study = run_study(make_plan(tiny_settings(folder, **tables)), tmp_path / "study")
    assert {trial.round for trial in study.trials} == {0, 1}
    assert all(trial.stratum == f"{trial.bit_class} {trial.stage}" for trial in study.trials)
    assert {trial.bit_class for trial in study.trials} == {
        "quant",
        "zero",
        "scale sign",
        "scale exponent",
        "scale mantissa",
    }
    assert study.audits
    assert all(study.audits.values())


def test_an_unknown_storage_is_refused(folder):
    with pytest.raises(InputError, match="unknown storage 'int3': choose from fp8_e4m3"):
        tiny_settings(folder, model={"storage": "int3"})


def test_a_rule_that_ranks_components_ranks_those_of_the_cache_and_of_heads(folder):
    faults = {"sites": ["key", "head_output", "weight"], "components": ["kv", "sv", "q"]}
    run = {"until": "rank components", "plan": "neyman", "strata": ["component"], "trials": 200}
    plan = make_plan(tiny_settings(folder, faults=faults, run=run))
    assert plan.settings.faults.components == ("q", "kv", "sv")


def test_a_step_no_answer_can_have_is_refused_before_the_run(folder):
    lines = ("weight model.norm.weight[3] flip 30 at decode:40",)
    with pytest.raises(InputError, match="can never strike"):
        make_plan(tiny_settings(folder).model_copy(update={"fault_list": lines}))


def test_a_fault_list_is_sized_as_for_a_very_large_population(folder):
    lines = ("weight model.norm.weight[3] flip 30 always",)
    found = outlook(make_plan(tiny_settings(folder).model_copy(update={"fault_list": lines})))
    assert found.sizes == {"5 points": 385, "3 points": 1068, "1 points": 9604}


def test_a_model_that_raises_under_a_fault_is_a_crash(folder, tmp_path, monkeypatch):
    plan = make_plan(tiny_settings(folder))
    forward = plan.model.module.lm_head.forward
    clean = plan.model.module.lm_head.weight.clone()

    def fragile(hidden):
        if not torch.equal(plan.model.module.lm_head.weight, clean):
            raise IndexError("out of range")
        return forward(hidden)

    monkeypatch.setattr(plan.model.module.lm_head, "forward", fragile)
    lines = (f"weight {plan.model.components.parameters[0].name}[3,3] flip 30 always",)
    settings = plan.settings.model_copy(update={"fault_list": lines})
    crashing = Plan(settings, plan.model, plan.task, plan.batches, plan.population, plan.environment)
    with pytest.raises(ModelCrashedError, match="out of range"):
        # The noise floor has no crash class: a model that fails on meaningless changes is no model to study.
        run_study(
            Plan(
                settings.model_copy(update={"run": settings.run.model_copy(update={"noise": 40})}),
                plan.model,
                plan.task,
                plan.batches,
                plan.population,
                plan.environment,
            ),
            tmp_path / "noise",
        )
    (record,) = trial_records(ReferenceExecutor(plan.model), crashing, [crashing.trial(0)])
    assert {item.outcome for item in record.items} == {"crash"}
    assert [strike.old_bits ^ strike.new_bits for strike in record.strikes] == [1 << 30]
    assert torch.equal(plan.model.module.lm_head.weight, clean)


def test_item_list_of_the_tiny_task_is_whole(plan):
    assert len(plan.task.items) == len(ITEMS)


def test_batches_of_single_items_have_another_shape_too(folder, tmp_path):
    study = run_study(make_plan(tiny_settings(folder, run={"batch_items": 1, "trials": 3})), tmp_path / "study")
    assert len(study.trials) == 3
    shapes = [item for record in study.noise if record.sweep == 0 for item in record.items]
    assert len(shapes) == len(study.golden)


def test_decode_only_faults_leave_short_answers_unreached(folder, tmp_path):
    faults = {"stages": ("decode",), "decode_steps": (3, 4), "sites": ("activation",)}
    study = run_study(make_plan(tiny_settings(folder, faults=faults)), tmp_path / "study")
    assert study.complete
    assert any(item.outcome == "unreached" for trial in study.trials for item in trial.items)


def test_a_model_that_is_not_finite_without_faults_is_refused(folder, tmp_path):
    plan = make_plan(tiny_settings(folder))
    plan.model.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="without any fault"):
        run_study(
            make_plan(tiny_settings(folder)).__class__(
                plan.settings,
                plan.model,
                plan.task,
                plan.batches,
                plan.population,
                plan.environment.model_copy(update={"model_hash": model_hash(plan.model.module)}),
            ),
            tmp_path / "study",
        )
    assert load_study(tmp_path / "study").golden == ()
