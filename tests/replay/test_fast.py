"""The fast executor gives the reference executor's bits, on every family, dtype and kind of site."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import ITEMS, cloze, generation

from aftershock.errors import ContractError
from aftershock.faults import Fault, Selection, parse_faults, sample_faults, select
from aftershock.models import Arithmetic, LoadedModel, align, load, model_hash
from aftershock.numerics import words
from aftershock.replay import (
    Batch,
    Distance,
    FastExecutor,
    Job,
    ModelCrashedError,
    ReferenceExecutor,
    Run,
    make_batches,
)
from aftershock.replay.observe import Seen
from aftershock.replay.pending import Pending
from aftershock.replay.reach import reach_of
from aftershock.replay.shapes import Shapes
from tiny_models import FAMILIES, save_tiny, tiny_loaded

FAULTS = 34
CASES = [(family, torch.float32) for family in FAMILIES]
CASES += [(family, torch.bfloat16) for family in ("llama", "gemma3", "qwen3", "mixtral", "gpt2")]
"""18 cases of 34 fault sets each: over 600 different sets."""

SHORT_CALLS = Shapes(copies=1, call_tokens=24, continued_rows=8, head_rows=4)
IN_COMPANY = Shapes(copies=4, call_tokens=128, continued_rows=8)
IN_COMPANY_TOO = ("llama", "gemma3", "gpt2", "qwen3")
"""Families whose trials run in company too, where every family runs alone."""

model_of = cache(tiny_loaded)


def batches_of(model: LoadedModel, items=ITEMS, size: int = 4) -> tuple[Batch, ...]:
    return make_batches(items, model, size, 3)


def drawn(model: LoadedModel, batch: Batch, count: int = FAULTS, **selection) -> list[tuple[Fault, ...]]:
    """Fault sets of both kinds of site, in turn."""
    sets = []
    for number in range(count):
        chosen = Selection(sites=(("weight", "activation")[number % 2],), **selection)
        population = select(chosen, model.components)
        sets.append(sample_faults(chosen, population, model.format, batch.decode_passes, seed=5, index=number))
    return sets


def printed(run: Run | ModelCrashedError) -> str:
    """All of a run; NaN equals itself in print."""
    if isinstance(run, ModelCrashedError):
        return f"crash {run.struck}"
    return repr([(item.answer, item.forced, item.reached, item.apart) for item in run.items]) + repr(run.struck)


def same(one: Run | ModelCrashedError, other: Run | ModelCrashedError) -> bool:
    return printed(one) == printed(other)


def disagreements(model: LoadedModel, jobs: Sequence[Job], shapes: Shapes = SHORT_CALLS) -> tuple[list[Job], int]:
    """The jobs whose runs differ, and how many generated answers, over all jobs, are not golden's."""
    reference = ReferenceExecutor(model, shapes=shapes)
    expected = {job.key: run for job, run in reference.trials(jobs)}
    found = {job.key: run for job, run in FastExecutor(model, shapes=shapes).trials(jobs)}
    assert found.keys() == expected.keys()
    assert any(run.struck for run in expected.values())
    left = sum(
        item.answer.tokens != clean.answer.tokens
        for job in jobs
        if job.batch.generates and isinstance(expected[job.key], Run)
        for item, clean in zip(expected[job.key].items, reference.golden(job.batch, job.faults).items, strict=True)
    )
    return [job for job in jobs if not same(found[job.key], expected[job.key])], left


def dealt(model: LoadedModel, count: int) -> list[Job]:
    """Every fault set on one or two of the batches, the next set on others."""
    return [
        Job((batch.number, number), batch, faults)
        for batch in batches_of(model)
        for number, faults in enumerate(drawn(model, batch, count, bit_classes=("sign", "exponent")))
        if (number + batch.number) % 3 == 0
    ]


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_every_trial_is_the_reference_executors_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    before = model_hash(model.module)
    different, left = disagreements(model, dealt(model, FAULTS))
    assert different == []
    assert left > 2
    assert model_hash(model.module) == before


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("gemma3", torch.float32), ("gpt2", torch.float32), ("qwen3", torch.bfloat16)],
)
def test_trials_that_share_a_run_are_the_reference_executors_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    before = model_hash(model.module)
    assert disagreements(model, dealt(model, 12), IN_COMPANY)[0] == []
    assert model_hash(model.module) == before


@pytest.mark.parametrize("shapes", [SHORT_CALLS, IN_COMPANY])
def test_rows_run_where_they_have_a_token_alone(shapes: Shapes) -> None:
    model = model_of("llama")
    # Items of one row each, of different lengths.
    (batch,) = batches_of(model, [cloze("a", "one two three", " four"), cloze("b", "x", " and so on and on")])
    executor = FastExecutor(model, shapes=replace(shapes, call_tokens=shapes.copies))
    executor.golden(batch)
    called: list[int] = []
    hook = model.module.get_submodule("model.layers.1").register_forward_pre_hook(
        lambda _, inputs: called.append(len(inputs[0]))
    )
    try:
        executor.trial(batch, parse_faults(f"weight {UP}[3,4] replace 40.0"))
    finally:
        hook.remove()
    rows = len(batch.sequences) * shapes.copies
    assert max(called) == rows
    assert min(called) < rows


def test_a_run_whose_fault_free_rows_are_not_goldens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    batch = next(batch for batch in batches_of(model) if not batch.generates)
    executor = FastExecutor(model, shapes=IN_COMPANY)
    executor.golden(batch)
    layer = model.module.get_submodule("model.layers.1")
    hook = layer.register_forward_hook(lambda _, inputs, output: output + 0.01)
    jobs = [Job(0, batch, parse_faults(f"weight {UP}[3,4] replace 40.0"))]
    try:
        with pytest.raises(ContractError, match="rows depend on each other"):
            list(executor.trials(jobs))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "names", ["fast.distances golden.distances", "reference.observe fast.observe_wanted", "fast.joined"]
)
@pytest.mark.parametrize("shapes", [SHORT_CALLS, IN_COMPANY])
def test_our_own_errors_are_not_taken_for_the_models(
    shapes: Shapes, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    batch = batches_of(model)[0]
    executor = FastExecutor(model, shapes=shapes)
    executor.golden(batch)

    def broken(*_: object) -> None:
        raise RuntimeError("no memory left for a product")

    for name in names.split():
        monkeypatch.setattr(f"aftershock.replay.{name}", broken)
    with pytest.raises(RuntimeError, match="no memory left"):
        list(executor.trials([Job(0, batch, parse_faults(f"weight {UP}[3,4] replace 40.0"))]))


def test_a_model_that_fails_without_a_fault_is_an_error() -> None:
    model = tiny_loaded("llama")
    (batch, *_) = batches_of(model)

    def failing(*_: object) -> None:
        raise IndexError("out of range")

    model.module.model.layers[1].mlp.forward = failing
    with pytest.raises(IndexError, match="out of range"):
        list(FastExecutor(model).trials([Job(0, batch, parse_faults(f"weight {UP}[3,4] replace 40.0"))]))


def test_trials_on_one_word_share_a_run() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 6) for n in range(2)])
    lines = [VALUE, f"{VALUE} from first_token"]
    different, left = disagreements(model, [Job(line, batch, parse_faults(line)) for line in lines], IN_COMPANY)
    assert different == []
    assert left > 2


def in_cache(model: LoadedModel, trigger: str) -> list[Job]:
    """Faults in keys and in values, on each batch."""
    jobs = []
    for number in range(12):
        chosen = Selection(sites=("key", "value"), cache_trigger=trigger, bit_classes=("sign", "exponent"))
        population = select(chosen, model.components)
        for batch in batches_of(model):
            faults = sample_faults(chosen, population, model.format, batch.decode_passes, 6, number)
            jobs.append(Job((batch.number, number), batch, faults))
    return jobs


@pytest.mark.parametrize("trigger", ["always", "transient"])
@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_faults_in_the_cache_agree_too(family: str, dtype: torch.dtype, trigger: str) -> None:
    model = model_of(family, dtype)
    together = [IN_COMPANY] if family in IN_COMPANY_TOO else []
    for shapes in (SHORT_CALLS, *together):
        different, left = disagreements(model, in_cache(model, trigger), shapes)
        assert different == []
        # A window of 16 tokens lets most of a prompt go.
        assert left > (0 if family.startswith("gemma") else 2)


def in_heads(model: LoadedModel, count: int) -> list[Job]:
    """Faults in scores, probabilities and head outputs, each on one batch."""
    chosen = Selection(sites=("score", "probability", "head_output"), bit_classes=("sign", "exponent"))
    population, batches = select(chosen, model.components), batches_of(model)
    jobs = []
    for number in range(count):
        batch = batches[number % len(batches)]
        faults = sample_faults(chosen, population, model.format, batch.decode_passes, 8, number)
        jobs.append(Job(number, batch, faults))
    return jobs


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in ("llama", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "mixtral")]
    + [(family, torch.bfloat16) for family in ("llama", "gemma3", "qwen3")],
)
def test_faults_in_attention_heads_agree_too(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype, attn_implementation="eager")
    together = [IN_COMPANY] if family in IN_COMPANY_TOO else []
    for shapes in (SHORT_CALLS, *together):
        different, left = disagreements(model, in_heads(model, 60), shapes)
        assert different == []
        assert left > 1


def test_a_bias_and_the_sum_before_it_are_struck_together(tmp_path: Path) -> None:
    """The module runs again for the bias, after its sum was struck."""
    model = load(str(save_tiny(tmp_path / "gpt2", "gpt2")), arithmetic="w8a8")
    name = "transformer.h.0.mlp.c_fc"
    faults = f"weight {name}.bias[3] replace 0.5 & activation {name}.accumulator[3] flip 22 at first_token"
    jobs = [Job(batch.number, batch, parse_faults(faults)) for batch in batches_of(model)]
    assert disagreements(model, jobs, IN_COMPANY)[0] == []


@pytest.mark.parametrize(
    ("family", "dtype", "arithmetic", "components"),
    [
        ("llama", torch.float32, "w8a8", ()),
        ("gpt2", torch.bfloat16, "w8a8-requantised", ()),
        ("llama", torch.bfloat16, "w8a8", ("qk", "sv")),
        # One of its layers slides.
        ("gemma3", torch.float32, "w8a8-requantised", ("qk", "sv")),
    ],
)
def test_faults_in_accumulators_agree_too(
    tmp_path: Path, family: str, dtype: torch.dtype, arithmetic: Arithmetic, components: tuple[str, ...]
) -> None:
    model = load(str(save_tiny(tmp_path / family, family)), dtype, arithmetic=arithmetic)
    chosen = Selection(sites=("accumulator",), bits=(14, 22, 30), components=components)
    population, batches = select(chosen, model.components), batches_of(model)
    jobs = []
    for number in range(40):
        batch = batches[number % len(batches)]
        faults = sample_faults(chosen, population, model.format, batch.decode_passes, 8, number)
        jobs.append(Job(number, batch, faults))
    for shapes in (SHORT_CALLS, IN_COMPANY):
        different, left = disagreements(model, jobs, shapes)
        assert different == []
        assert left > 2


UP, NORM, TABLE = "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
ATTENTION = "model.layers.0.self_attn"
VALUE = f"value {ATTENTION}[1,3] of first_token flip 30"
LINES = [
    f"weight {UP}[3,4] replace 40.0 & weight {UP}[3,5] replace -40.0",
    f"weight {UP}[3,4] replace 40.0 & weight {NORM}[2] replace 9.0",
    f"weight {UP}[3,4] replace 40.0 from decode:2",
    f"weight {UP}[3,4] replace 40.0 from first_token to decode:3",
    f"weight {NORM}[3] replace 40.0 from prefill to decode:2 & weight {NORM}[4] replace 40.0 from decode:4",
    f"weight {UP}[3,4] replace 40.0 & activation model.layers.0[3] add 5.0 at decode:3",
    "activation model.layers.0[3] add 50.0 at first_token & activation model.layers.1[3] add 50.0 at decode:4",
    f"activation model.layers.0[3] add 50.0 at first_token & weight {NORM}[4] replace 40.0 from decode:4",
    f"weight {UP}[3,4] replace 40.0 & activation {UP.removesuffix('.weight')}[3] add 5.0 at first_token",
    "activation lm_head[40] add 50.0 at decode:1",
    "activation model.embed_tokens[4] add 50.0 at prefill:0",
    f"weight {TABLE}[40,3] replace 9.0",
    f"weight {TABLE}[90,3] replace 60.0 & weight {TABLE}[41,3] replace 60.0",
    f"weight {TABLE}[2,3] replace 9.0",
    f"weight {TABLE}[2,3] replace -9.0",
    f"weight {NORM}[3] add 0.0",
    f"value {ATTENTION}[1,3] of prefill:0 replace 30.0 from decode:2",
    f"value {ATTENTION}[1,3] of first_token replace 30.0 from first_token to decode:3",
    f"key {ATTENTION}[1,3] of decode:2 replace 30.0 & activation model.layers.0[3] add 5.0 at first_token",
    f"key {ATTENTION}[1,3] of prefill:0.5 replace 30.0 & weight {UP}[3,4] replace 40.0",
    f"activation model.layers.0[3] add 50.0 at decode:2 & value {ATTENTION}[1,3] of decode:3 replace 90.0",
    f"value {ATTENTION}[1,3] of first_token flip 1 & value {ATTENTION}[1,3] of first_token flip 2",
]


@pytest.mark.parametrize("shapes", [SHORT_CALLS, IN_COMPANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sets_of_faults_and_every_trigger_agree_too(dtype: torch.dtype, shapes: Shapes) -> None:
    model = model_of("llama", dtype)
    lines = [*LINES, f"weight {NORM}[3] replace nan"]
    jobs = [Job((batch.number, line), batch, parse_faults(line)) for batch in batches_of(model) for line in lines]
    different, left = disagreements(model, jobs, shapes)
    assert different == []
    assert left > 20


@pytest.mark.parametrize("shapes", [SHORT_CALLS, IN_COMPANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_struck_together_agree_too(dtype: torch.dtype, shapes: Shapes) -> None:
    model = model_of("llama", dtype)
    patterns: list[dict[str, Any]] = [
        {"pattern": "row", "span": "all", "corruption": "replace", "value": 0.0},
        {"pattern": "stride", "span": 3, "stride": 8, "bit_classes": ("exponent",), "bits_per_word": 2},
        {"pattern": "row", "span": 4, "corruption": "stuck-at-1", "bit_classes": ("exponent",)},
    ]
    jobs = [
        Job((number, place, batch.number), batch, faults)
        for batch in batches_of(model)
        for place, keys in enumerate(patterns)
        for number, faults in enumerate(drawn(model, batch, 4, **keys))
    ]
    assert all(len(job.faults) > 2 for job in jobs)
    assert disagreements(model, jobs, shapes)[0] == []


def assert_decoded(model: LoadedModel, jobs: Sequence[Job]) -> None:
    """Every answer is the one of decoding token by token under the faults; after a NaN only that there was one."""
    reference = ReferenceExecutor(model)
    for job, run in FastExecutor(model).trials(jobs):
        decoded = reference.decoded(job.batch, job.faults)
        assert [item.answer.finite for item in run.items] == list(decoded.finite), job.key
        for item, tokens in zip(run.items, decoded.tokens, strict=True):
            assert item.answer.tokens == tokens or not item.answer.finite, job.key


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_answers_in_fp32_are_those_of_decoding_token_by_token(family: str) -> None:
    model = model_of(family)
    # A layer of gemma3 slides over 16 tokens.
    longer = 3 if family == "gemma3" else 1
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}" * longer, 12) for n in range(4)])
    sets = [*drawn(model, batch, 20), *map(parse_faults, LINES if family == "llama" else ())]
    cached = [
        sample_faults(chosen, select(chosen, model.components), model.format, batch.decode_passes, 7, number)
        for trigger in ("always", "transient")
        for chosen in [Selection(sites=("key", "value"), cache_trigger=trigger, bit_classes=("sign", "exponent"))]
        for number in range(10)
    ]
    assert_decoded(model, [Job(n, batch, faults) for n, faults in enumerate([*sets, *cached])])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_in_fp32_under_faults_in_attention_heads_are_those_of_decoding(family: str) -> None:
    model = model_of(family, attn_implementation="eager")
    assert_decoded(model, [job for job in in_heads(model, 60) if job.batch.generates])


@pytest.mark.parametrize(
    "line",
    [
        f"weight {UP}[3,4] replace 40.0 from first_token to decode:{{0}}",
        f"weight {UP}[3,4] replace 40.0 & weight {NORM}[3] replace 9.0 from decode:{{0}}",
    ],
)
def test_faults_that_begin_or_end_after_an_answer_left_goldens_are_decoded(line: str) -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 12) for n in range(4)])
    assert_decoded(model, [Job(moment, batch, parse_faults(line.format(moment))) for moment in range(1, 11)])


def test_an_answer_that_ends_early_under_a_fault_ends_there() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 12) for n in range(4)])
    executor, faults = FastExecutor(model), parse_faults(f"weight {TABLE}[2,3] replace 9.0")
    answers = [item.answer.tokens for item in executor.trial(batch, faults).items]
    golden = [item.answer.tokens for item in executor.golden(batch).items]
    assert any(len(ours) < len(theirs) for ours, theirs in zip(answers, golden, strict=True))
    assert tuple(answers) == executor.decoded(batch, faults).tokens


def test_experts_see_all_rows_so_their_answers_are_decoded_as_one_batch() -> None:
    model = model_of("mixtral", torch.bfloat16)
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 12) for n in range(4)])
    jobs = [Job(n, batch, faults) for n, faults in enumerate(drawn(model, batch, 30, bit_classes=("exponent",)))]
    reference = ReferenceExecutor(model)
    golden = reference.golden(batch)
    left = 0
    for job, run in FastExecutor(model).trials(jobs):
        if any(item.answer.tokens != clean.answer.tokens for item, clean in zip(run.items, golden.items, strict=True)):
            left += 1
            decoded = reference.decoded(batch, job.faults)
            for item, tokens in zip(run.items, decoded.tokens, strict=True):
                assert item.answer.tokens == tokens or not item.answer.finite
    assert left > 3


@pytest.mark.parametrize(
    ("line", "layers"),
    [
        (f"weight {UP}[3,4] flip 1", (1, 1)),
        (f"weight {UP}[3,4] flip 1 & activation model.layers.0[3] flip 1 at first_token", (0, 1)),
        (f"weight {UP}[3,4] flip 1 & weight {NORM}[3] flip 1", (1, None)),
        (f"weight {NORM}[3] flip 1", (2, None)),
        ("activation lm_head[3] flip 1 at first_token", (2, None)),
        ("activation model.embed_tokens[3] flip 1 at first_token", (0, 0)),
        # Token 5 is in the block, token 50 is not; the tensor is lm_head's too.
        (f"weight {TABLE}[5,3] flip 1", (0, None)),
        (f"weight {TABLE}[50,3] flip 1", (2, None)),
        ("key model.layers.1.self_attn[1,3] of first_token flip 1", (1, 1)),
        (f"value {ATTENTION}[1,3] of first_token flip 1 & weight {UP}[3,4] flip 1", (0, 1)),
    ],
)
def test_layers_that_a_fault_can_change(line: str, layers: tuple[int, int | None]) -> None:
    model = model_of("llama")
    block = align([[5, 6, 7], [8, 9]], [[10], []], model.device)
    reach = reach_of(parse_faults(line), model, block)
    assert (reach.first, reach.last) == layers


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        (f"weight {UP}[3,4] flip 1", (0, 6)),
        (f"weight {UP}[3,4] flip 1 from decode:1 to decode:2", (3, 4)),
        ("activation model.layers.0[3] flip 1 at prefill:0", (0, 2)),
        ("activation model.layers.0[3] flip 1 at decode:2", (4, 5)),
        ("activation model.layers.0[3] flip 1 at decode:4", (6, 6)),
        # A word of the cache is read after it is written.
        (f"key {ATTENTION}[1,3] of prefill:1 flip 1", (1, 6)),
        (f"key {ATTENTION}[1,3] of first_token flip 1 from decode:2", (4, 6)),
        (f"value {ATTENTION}[1,3] of prefill:0 flip 1 from prefill to decode:2", (0, 4)),
        (f"value {ATTENTION}[1,3] of prefill:0 flip 1 at decode:2", (4, 5)),
        (f"value {ATTENTION}[1,3] of prefill:0 flip 1 at decode:4", (6, 6)),
        (f"value {ATTENTION}[1,3] of prefill:9 flip 1", (6, 6)),
        # What is written back was written under the other fault.
        (f"activation {ATTENTION}.v_proj[11] flip 1 at first_token & {VALUE} at first_token", (2, 6)),
    ],
)
def test_columns_that_a_fault_can_change(line: str, columns: tuple[int, int]) -> None:
    model = model_of("llama")
    block = align([[5, 6, 7], [8, 9]], [[10, 11, 12], []], model.device)
    reach = reach_of(parse_faults(line), model, block)
    assert (reach.start, reach.stop) == columns


def test_a_trial_alone_is_the_trial_in_company() -> None:
    model = model_of("qwen3")
    (batch,) = batches_of(model, [item for item in ITEMS if item.kind == "generation"])
    jobs = [Job(n, batch, faults) for n, faults in enumerate(drawn(model, batch, bit_classes=("exponent",)))]
    together = {job.key: run for job, run in FastExecutor(model).trials(jobs)}
    alone = FastExecutor(model)
    assert all(same(together[job.key], alone.trial(batch, job.faults)) for job in jobs)


def test_layers_before_the_fault_do_not_run_and_get_their_forward_back() -> None:
    model = tiny_loaded("llama")
    executor = FastExecutor(model)
    (batch, *_) = batches_of(model)
    executor.golden(batch)
    ran = []
    hook = model.module.model.layers[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    executor.trial(batch, parse_faults("weight model.layers.1.mlp.up_proj.weight[3,4] replace 4.0"))
    assert not ran
    executor.trial(batch, parse_faults("weight model.layers.0.mlp.up_proj.weight[3,4] replace 4.0"))
    assert ran
    hook.remove()
    assert all("forward" not in layer.__dict__ for layer in model.module.model.layers)


def test_a_trial_whose_state_is_goldens_again_runs_no_further() -> None:
    model = tiny_loaded("llama")
    executor = FastExecutor(model)
    (batch, *_) = batches_of(model)
    golden = executor.golden(batch)
    ran = []
    hook = model.module.model.layers[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    run = executor.trial(batch, parse_faults("weight model.layers.0.mlp.up_proj.weight[3,4] add 0.0"))
    hook.remove()
    assert not ran
    assert [item.answer for item in run.items] == [item.answer for item in golden.items]
    assert all(item.reached for item in run.items)
    assert len(run.struck) == 1


def test_a_model_that_fails_under_one_fault_is_no_loss_for_the_others() -> None:
    model = tiny_loaded("llama")
    clean = model.module.lm_head.weight.clone()
    forward = model.module.lm_head.forward

    def fragile(hidden: torch.Tensor) -> torch.Tensor:
        if not torch.equal(words(model.module.lm_head.weight)[3], words(clean)[3]):
            raise IndexError("out of range")
        return forward(hidden)

    model.module.lm_head.forward = fragile
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 6) for n in range(3)])
    lines = [
        "weight model.embed_tokens.weight[3,3] flip 29",
        "weight model.layers.1.mlp.up_proj.weight[3,4] replace 40.0",
    ]
    jobs = [Job(line, batch, parse_faults(line)) for line in lines]
    runs = {job.key: run for job, run in FastExecutor(model).trials(jobs)}
    assert isinstance(runs[lines[0]], ModelCrashedError)
    assert isinstance(runs[lines[1]], Run)


def test_a_fault_whose_module_never_runs_is_an_error() -> None:
    model = tiny_loaded("llama")
    model.module.model.layers[1].mlp.forward = lambda hidden: hidden
    (batch, *_) = batches_of(model)
    with pytest.raises(ContractError, match="never made what it strikes"):
        FastExecutor(model).trial(
            batch, parse_faults("activation model.layers.1.mlp.down_proj[1] flip 1 at first_token")
        )


def tensors_in(thing: object) -> Iterator[torch.Tensor]:
    """The large ones: those that lie on the model's device."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, Seen):
        yield thing.logits
    elif is_dataclass(thing):
        yield from tensors_in([getattr(thing, field.name) for field in fields(thing)])
    elif isinstance(thing, tuple | list):
        for one in thing:
            yield from tensors_in(one)


def test_golden_state_holds_nothing_of_its_copies() -> None:
    # A view of a run in company would keep the logits of all its copies in memory, uncounted.
    model = model_of("llama")
    for batch in batches_of(model):
        executor = FastExecutor(model, shapes=IN_COMPANY)
        executor.golden(batch)
        (golden,) = executor._golden.values()
        assert golden.trajectory is not None
        storages = [one.untyped_storage() for one in tensors_in(golden.trajectory)]
        assert sum({one.data_ptr(): one.nbytes() for one in storages}.values()) == golden.trajectory.nbytes > 0


def test_golden_state_stays_within_its_memory() -> None:
    model = model_of("llama")
    batches = batches_of(model, size=2)
    free = FastExecutor(model)
    for batch in batches:
        free.golden(batch)
    executor = FastExecutor(model, memory=free.held // 2)
    for batch in batches:
        executor.golden(batch)
        assert executor.held <= free.held // 2
    fault = parse_faults("weight model.layers.1.mlp.up_proj.weight[3,4] replace 40.0")
    assert all(same(executor.trial(batch, fault), free.trial(batch, fault)) for batch in batches)


HELD, ABSENT = "model.embed_tokens.weight[5,3]", "model.embed_tokens.weight[50,3]"


@pytest.mark.parametrize(
    ("family", "line", "proof"),
    [
        ("llama", f"weight {UP}[3,4] add 0.0", "converged"),
        ("llama", f"weight {UP}[3,4] flip 30", None),
        # The last norm comes after every layer: nothing is left that could be golden's again.
        ("llama", f"weight {NORM}[3] add 0.0", None),
        ("llama", "activation model.layers.0[3] add 0.0 at first_token", "converged"),
        ("llama", "activation model.layers.0[3] add 50.0 at decode:40", "not_activated"),
        ("llama", "weight model.layers.0.mlp.up_proj.weight[3,4] replace 9.0 from decode:40", "not_activated"),
        # In the tied table the row that no prompt holds is lm_head's too.
        ("llama", f"weight {ABSENT} replace 9.0", None),
        ("qwen3", f"weight {ABSENT} replace 9.0", "not_activated"),
        ("qwen3", f"weight {ABSENT} replace 9.0 & weight {UP}[3,4] add 0.0", "converged"),
        ("qwen3", f"weight {ABSENT} replace 9.0 & weight {UP}[3,4] flip 30", None),
        ("qwen3", f"weight {HELD} replace 9.0", None),
        ("llama", VALUE, None),
        ("llama", f"key {ATTENTION}[1,3] of first_token add 0.0", "converged"),
        ("llama", f"key {ATTENTION}[1,3] of decode:40 flip 30", "not_activated"),
        ("llama", f"{VALUE} from decode:1 to decode:3", None),
        ("llama", f"{VALUE} from decode:40", "not_activated"),
        # The second undoes the first as long as it lasts.
        ("llama", f"activation {ATTENTION}.v_proj[11] flip 30 at first_token & {VALUE} at first_token", None),
    ],
)
@pytest.mark.parametrize("shapes", [SHORT_CALLS, IN_COMPANY])
def test_a_run_that_ends_early_says_what_proves_it(family: str, line: str, proof: str | None, shapes: Shapes) -> None:
    model = model_of(family)
    (batch,) = batches_of(model, [cloze("held", "!" + model.tokenizer.decode([5]), "five")])
    faults = parse_faults(line)
    found = FastExecutor(model, shapes=shapes).trial(batch, faults)
    expected = ReferenceExecutor(model, shapes=shapes).trial(batch, faults)
    assert same(found, expected)
    assert expected.proof is None
    # Runs that trials share are not looked at.
    alone = shapes.copies == 1 or "from" in line
    assert found.proof == (proof if alone else None)


def test_a_fault_of_a_stage_that_no_item_has_is_not_activated() -> None:
    """Contexts of one token have no prefill."""
    model = model_of("llama")
    (batch,) = batches_of(model, [cloze(text, text, "five") for text in "ab"])
    faults = parse_faults(f"weight {NORM}[3] replace 9.0 at prefill")
    found = FastExecutor(model).trial(batch, faults)
    assert found.proof == "not_activated"
    assert same(found, ReferenceExecutor(model).trial(batch, faults))


def test_a_state_that_is_goldens_again_is_decoded_where_golden_is_too_close_to_call() -> None:
    model = tiny_loaded("qwen3")
    (batch,) = batches_of(model, [generation("a", "Say something", 6)])
    faults = parse_faults(f"weight {UP}[3,4] add 0.0")
    assert FastExecutor(model, shapes=SHORT_CALLS).trial(batch, faults).proof == "converged"
    # A token that ties with one of the answer's: decoding could choose either.
    chosen = FastExecutor(model, shapes=SHORT_CALLS).golden(batch).items[0].forced[2]
    with torch.no_grad():
        model.module.lm_head.weight[99] = model.module.lm_head.weight[chosen]
    executor = FastExecutor(model, shapes=SHORT_CALLS)
    run = executor.trial(batch, faults)
    assert same(run, ReferenceExecutor(model, shapes=SHORT_CALLS).trial(batch, faults))
    assert run.proof is None
    assert [item.apart for item in run.items] == [Distance(0.0, 0.0)]


def test_more_answers_than_rows_are_written_on_in_parts() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [item for item in ITEMS if item.kind == "generation"])
    lines = (f"weight {UP}[3,4] replace 40.0", f"weight {NORM}[3] flip 30")
    jobs = [Job(line, batch, parse_faults(line)) for line in lines]
    different, left = disagreements(model, jobs, Shapes(copies=1, call_tokens=512, continued_rows=1))
    assert different == []
    assert left > 2


def test_a_fault_that_nothing_reads_is_told_of_though_another_one_was_lost_before() -> None:
    model = model_of("qwen2_moe")
    table = "model.embed_tokens.weight"
    assert next(site.component for site in model.components.parameters if site.name == table) == "embedding"
    gate = "model.layers.0.mlp.gate.weight"
    stored = int(words(model.module.get_parameter(gate).detach())[0, 0] & 1)
    (batch,) = batches_of(model, [generation("a", "Say something", 9)])
    line = f"weight {gate}[0,0] stuck-at-{stored} 0 at first_token & weight {table}[99,0] flip 3 from decode:5"
    assert disagreements(model, [Job(0, batch, parse_faults(line))])[0] == []


def test_an_answer_is_confirmed_as_far_as_its_own_last_close_choice() -> None:
    model = model_of("llama")
    executor = ReferenceExecutor(model, shapes=SHORT_CALLS)
    trials = (executor._begin(job) for job in dealt(model, FAULTS) if job.batch.generates)
    # One answer has left golden's before another one ends.
    begun = next(
        one
        for one in trials
        if isinstance(one, Pending) and len(one.prefixes[0].written) < max(len(row.tokens) for row in one.rows)
    )
    longest = max(range(len(begun.rows)), key=lambda row: len(begun.rows[row].tokens))
    close = len(begun.rows[longest].tokens)

    def with_close(tokens: tuple[int, ...]) -> Pending:
        rows = [replace(row, certain=close if number == longest else 0) for number, row in enumerate(begun.rows)]
        rows[longest] = replace(rows[longest], tokens=tokens)
        return replace(begun, rows=tuple(rows))

    own = begun.rows[longest].tokens
    assert executor._confirmed(with_close(own))
    assert not executor._confirmed(with_close((*own[:-1], own[-1] + 1)))


def test_logits_too_large_for_the_doubt_have_every_choice_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [generation("a", "Say something to me", 9)])
    executor, faults = FastExecutor(model, shapes=SHORT_CALLS), parse_faults(f"weight {UP}[3,4] replace 40.0")
    golden = executor._golden_run(batch, frozenset())
    looked, observed = [], executor._observed

    def looking(*given: Any) -> Any:
        looked.append((given[1], given[3]))
        return observed(*given)

    monkeypatch.setattr(executor, "_observed", looking)
    executor.trial(batch, faults)
    once = [(number, golden.doubt.least) for number in range(len(golden.calls))]
    assert looked == once
    looked.clear()
    monkeypatch.setattr("aftershock.replay.fast.band_of", lambda *_: 2 * golden.doubt.least)
    executor.trial(batch, faults)
    assert looked == [*once, *((number, math.inf) for number in range(len(golden.calls)))]


def test_a_proof_does_not_hold_where_goldens_own_choices_are_too_close(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [generation("a", "Say something to me", 9)])
    executor, faults = FastExecutor(model), parse_faults(f"weight {UP}[3,4] add 0.0")
    proved = executor.trial(batch, faults)
    assert proved.proof == "converged"
    monkeypatch.setattr("aftershock.replay.reference.least_band", lambda golden: math.inf)
    decoded = executor.trial(batch, faults)
    assert decoded.proof is None
    assert same(decoded, proved)


def test_what_waits_keeps_none_of_goldens_states() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [generation("a", "Say something to me", 9)])
    executor = FastExecutor(model, shapes=SHORT_CALLS)
    golden = executor._golden_run(batch, frozenset())
    assert golden.trajectory is not None
    assert golden.doubt is not None
    begun = executor._begin(Job(0, batch, parse_faults(f"weight {UP}[3,4] replace 40.0")))
    assert isinstance(begun, Pending)
    assert begun.golden == replace(golden, trajectory=None, doubt=None)


def test_a_struck_key_that_leaves_its_own_call_as_it_was_is_not_forgotten() -> None:
    model = model_of("llama", torch.bfloat16)
    (batch,) = batches_of(model, [generation("a", "Say something to me", 9)])
    faults = [
        parse_faults(f"activation model.layers.{layer}.self_attn.k_proj[{channel}] flip {bit} at prefill:{token}")
        for layer in (0, 1)
        for channel in (0, 5)
        for bit in (0, 3)
        for token in (1, 4, 7, 10)
    ]
    # With a fault in the layer after it, both are watched.
    faults += [(*one, *parse_faults(f"weight {UP}[3,4] add 0.0")) for one in faults]
    jobs = [Job(number, batch, one) for number, one in enumerate(faults)]
    calls_of_one_column = Shapes(copies=1, call_tokens=1, continued_rows=2, head_rows=4)
    assert disagreements(model, jobs, calls_of_one_column)[0] == []


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_overflows_leaks_to_no_earlier_token(family: str) -> None:
    model = model_of(family)
    (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 12) for n in range(4)])
    layer = "model.layers.0"
    lines = [
        f"{site} replace {value} at {moment}"
        for site in (f"activation {layer}.self_attn.k_proj[9]", f"activation {layer}.self_attn.v_proj[3]")
        for value in ("inf", "-inf", "nan")
        for moment in ("prefill:1", "first_token", "decode:1", "decode:5", "decode:11")
    ]
    weights = [f"weight {layer}.self_attn.{part}_proj.weight[9,2] replace inf" for part in ("q", "k", "v")]
    cached = [f"key {layer}.self_attn[0,6] of decode:6 replace {value}" for value in ("inf", "-inf")]
    sets = [*map(parse_faults, [*lines, *weights, *cached])]
    assert_decoded(model, [Job(n, batch, faults) for n, faults in enumerate(sets)])
    jobs = [Job(n, batch, faults) for n, faults in enumerate(sets)]
    assert disagreements(model, jobs, IN_COMPANY)[0] == []


def test_golden_that_is_not_finite_itself_ends_too() -> None:
    model = model_of("llama")
    weight = model.module.get_submodule("model.layers.1.mlp.up_proj").weight
    old = weight.detach()[3, 4].clone()
    try:
        weight.data[3, 4] = torch.nan
        (batch,) = batches_of(model, [generation(str(n), f"Prompt {n}", 6) for n in range(2)])
        faults = parse_faults("activation model.layers.0[3] add 5.0 at decode:3")
        assert all(not item.answer.finite for item in ReferenceExecutor(model).trial(batch, faults).items)
    finally:
        weight.data[3, 4] = old
