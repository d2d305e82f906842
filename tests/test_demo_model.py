"""The contracts on real weights: SmolLM2-135M-Instruct in float32, in small doses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aftershock.faults import Selection, parse_faults, sample_faults, select
from aftershock.inject import Injection
from aftershock.models import (
    Block,
    LoadedModel,
    align,
    generate,
    load,
    model_hash,
    teacher_forced,
)
from aftershock.models.conversion import converted
from aftershock.replay import FastExecutor, Job, ReferenceExecutor, make_batches
from aftershock.study import check_settings, make_plan, replay_trial, run_study
from aftershock.tasks import encode, load_task
from demo_model import FILE, SPEC, needs_demo_model

pytestmark = needs_demo_model

NEW_TOKENS = 8


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """A plan sets the number of threads; it is the other tests' again after."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(SPEC)


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    """The same files as transformers itself loads them, without gradients too.

    For weights that want gradients torch takes another kernel in the head, which rounds otherwise.
    """
    return AutoModelForCausalLM.from_pretrained(converted(FILE), dtype=torch.float32).requires_grad_(False)


@pytest.fixture(scope="module")
def prompts(model: LoadedModel) -> tuple[tuple[int, ...], ...]:
    """Contexts of eight generation items of the probe set, of several lengths."""
    items = [item for item in load_task("probe").items if item.kind == "generation"]
    found = tuple(encode(item, model.tokenizer)[0].context for item in items[:: len(items) // 8][:8])
    assert len({len(context) for context in found}) > 2
    return found


@pytest.fixture(scope="module")
def block(model: LoadedModel, prompts: tuple[tuple[int, ...], ...]) -> Block:
    return align(prompts, [()] * len(prompts), model.device)


def test_logits_are_those_of_transformers_bit_for_bit(model, plain, prompts):
    answers = [(5, 6, 7)[: row % 4] for row in range(len(prompts))]
    block = align(prompts, answers, model.device)
    with torch.inference_mode():
        expected = plain(
            input_ids=block.tokens,
            attention_mask=block.mask,
            position_ids=block.positions,
            use_cache=False,
            logits_to_keep=torch.arange(block.tokens.shape[1] - 4, block.tokens.shape[1]),
        ).logits
    with Injection(model, ()) as injection:
        found = teacher_forced(model, block, frozenset(), injection.begin_pass)
    assert found.shape[1] == 4
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_greedy_tokens_are_those_of_transformers(model, plain, block):
    with torch.inference_mode():
        written = plain.generate(
            input_ids=block.tokens,
            attention_mask=block.mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )[:, block.context_width :]
    ends = set(torch.tensor(plain.generation_config.eos_token_id).reshape(-1).tolist())
    expected = []
    for row in written.tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        expected.append(tuple(row[:stop]))
    with Injection(model, ()) as injection:
        found = generate(model, block, [NEW_TOKENS] * block.rows, [()] * block.rows, frozenset(), injection.begin_pass)
    assert found.tokens == tuple(expected)
    assert all(found.finite)


def test_arming_and_undoing_leaves_every_word(model, block):
    before = model_hash(model.module)
    selection = Selection(sites=("weight",), count=20)
    faults = sample_faults(selection, select(selection, model.components), model.format, 1, seed=0, index=0)
    faults += parse_faults(
        "weight model.norm.weight[1] replace nan always & weight model.norm.weight[2] replace -0.0 always & "
        "activation model.layers.3.mlp.down_proj[5] flip 30 at first_token"
    )
    with Injection(model, faults) as injection:
        assert model_hash(model.module) != before
        teacher_forced(model, block, frozenset({1}), injection.begin_pass)
    assert len({struck.fault for struck in injection.struck}) == len(faults)
    assert model_hash(model.module) == before


def test_small_study_repeats(tmp_path: Path):
    settings = check_settings(
        {
            "model": {"spec": SPEC},
            "task": {"limit": 4, "max_new_tokens": 3},
            "run": {"trials": 3, "items_per_fault": 4, "batch_items": 4, "noise": 2, "traced": 1, "threads": 1},
        },
        "test",
    )
    study = run_study(make_plan(settings), tmp_path)
    assert study.complete
    assert study.aa_disagreements == 0
    for trial in study.trials:
        assert trial.strikes or all(item.outcome == "unreached" for item in trial.items)
    replay = replay_trial(tmp_path, 1)
    assert replay.same_plan
    assert replay.equal


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fast_trials_are_the_reference_executors_to_the_bit(dtype: str) -> None:
    loaded = load(SPEC, dtype)
    items = [item for item in load_task("probe", max_new_tokens=NEW_TOKENS).items if item.kind == "generation"][:4]
    (batch,) = make_batches(items, loaded, 4, 0)
    lines = [
        "weight model.layers.20.mlp.down_proj.weight[3,4] replace 30.0",
        "weight model.layers.3.self_attn.o_proj.weight[30,40] replace 20.0",
        "weight model.norm.weight[5] replace 80.0",
        "activation model.layers.12[7] add 300.0 at decode:2",
    ]
    jobs = [Job(line, batch, parse_faults(line)) for line in lines]
    reference = ReferenceExecutor(loaded)
    golden = reference.golden(batch)
    expected = {job.key: run for job, run in reference.trials(jobs)}
    assert any(run.items[0].answer.tokens != golden.items[0].answer.tokens for run in expected.values())
    for job, run in FastExecutor(loaded).trials(jobs):
        for mine, theirs in zip(run.items, expected[job.key].items, strict=True):
            assert mine.answer == theirs.answer
            assert mine.apart == theirs.apart
