"""The reference executor: golden runs, trials against them, and how far the two are apart."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax
from small_tasks import ITEMS, choice, generation, lm

from aftershock.errors import ContractError
from aftershock.faults import Fault, parse_faults
from aftershock.inject import Injection
from aftershock.models import LoadedModel, align, teacher_forced
from aftershock.numerics import generator
from aftershock.replay import Batch, Distance, ItemRun, ReferenceExecutor, Run, distance, make_batches
from aftershock.tasks import Answer
from tiny_models import tiny_loaded

NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
MODEL_FAMILIES = ["llama", "gemma3", "gpt2", "mixtral"]
model_of = cache(tiny_loaded)


def batches_of(model: LoadedModel, items=ITEMS, size: int = 4) -> tuple[Batch, ...]:
    return make_batches(items, model, size, 3)


def same(one: Run, other: Run) -> bool:
    """Whether two golden runs gave the same answers and the same bits."""
    return all(
        (a.answer, a.forced) == (b.answer, b.forced)
        and all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a.logits, b.logits, strict=True))
        for a, b in zip(one.items, other.items, strict=True)
    )


def as_golden(golden: Run, trial: Run) -> bool:
    """Whether a trial gave golden's answers and logits."""
    return all(
        (a.answer, a.forced) == (b.answer, b.forced) and b.apart == Distance(0.0, 0.0)
        for a, b in zip(golden.items, trial.items, strict=True)
    )


@pytest.mark.parametrize("family", MODEL_FAMILIES)
@pytest.mark.parametrize("trigger", ["always", "at first_token", "from decode:2", "from prefill to decode:3"])
def test_a_fault_that_changes_nothing_gives_the_golden_run(family: str, trigger: str) -> None:
    model = model_of(family)
    executor = ReferenceExecutor(model)
    name, parameter = next(iter(model.module.named_parameters()))
    bit = int(parameter.detach().view(torch.int32)[1, 1] >> 5) & 1
    faults = parse_faults(f"weight {name}[1,1] stuck-at-{bit} 5 {trigger}")
    for batch in batches_of(model):
        golden = executor.golden(batch, faults)
        trial = executor.trial(batch, faults)
        assert as_golden(golden, trial)
        assert golden.struck == ()
        assert not any(item.reached for item in golden.items)


def test_a_trial_without_faults_is_the_golden_run() -> None:
    model = model_of("llama")
    executor = ReferenceExecutor(model)
    for batch in batches_of(model):
        assert as_golden(executor.golden(batch), executor.trial(batch, ()))


def test_a_golden_run_is_kept_for_each_way_of_cutting() -> None:
    model = model_of("llama")
    executor = ReferenceExecutor(model)
    (batch, *_) = batches_of(model)
    whole = executor.golden(batch)
    assert executor.golden(batch, parse_faults(f"weight {NORM}[1] flip 1")) is whole
    assert executor.golden(batch, parse_faults("activation model.norm[1] flip 1 at first_token")) is whole
    cut = executor.golden(batch, parse_faults(f"weight {NORM}[1] flip 1 from first_token"))
    assert cut is not whole
    assert executor.golden(batch, parse_faults(f"weight {UP}[1,2] flip 3 from first_token")) is cut


def test_golden_runs_are_dropped_when_memory_runs_out_the_oldest_first() -> None:
    model = model_of("llama")
    (first, second, third, *_) = batches_of(model, size=2)

    def held(*batches: Batch) -> int:
        free = ReferenceExecutor(model)
        for batch in batches:
            free.golden(batch)
        return free.held

    executor = ReferenceExecutor(model, memory=max(held(first, second), held(first, third)))
    kept = executor.golden(first)
    other = executor.golden(second)
    # Used again, so it is now the younger one; the third does not fit beside both.
    assert executor.golden(first) is kept
    executor.golden(third)
    assert executor.golden(first) is kept
    again = executor.golden(second)
    assert again is not other
    assert same(again, other)


def test_one_golden_run_is_always_kept() -> None:
    model = model_of("llama")
    (first, second, *_) = batches_of(model, size=2)
    executor = ReferenceExecutor(model, memory=0)
    kept = executor.golden(first)
    assert executor.golden(first) is kept
    executor.golden(second)
    assert executor.golden(first) is not kept


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_golden_texts_are_those_of_transformers_generate(family: str) -> None:
    model = model_of(family)
    items = [item for item in ITEMS if item.kind == "generation"]
    (batch,) = batches_of(model, items)
    block = align([context for context, _ in batch.sequences], [()] * len(items), model.device)
    theirs = model.module.generate(
        input_ids=block.tokens, attention_mask=block.mask, do_sample=False, max_new_tokens=9
    )[:, block.context_width :]
    golden = ReferenceExecutor(model).golden(batch)
    for item, run, sequences in zip(batch.items, golden.items, batch.sequence_of, strict=True):
        tokens = theirs[sequences[0]].tolist()[: item.max_new_tokens]
        tokens = tokens[: tokens.index(2)] if 2 in tokens else tokens
        ended = len(tokens) < item.max_new_tokens
        assert run.forced == (*tokens, 2) if ended else tuple(tokens)
        assert run.answer.output == model.tokenizer.decode(tokens, skip_special_tokens=False).strip()
        # Teacher-forced on its own text the model predicts it again.
        places = np.linspace(0, len(run.forced) - 1, min(8, len(run.forced))).astype(int)
        assert run.logits[0].argmax(-1).tolist() == [run.forced[place] for place in places]


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_scores_are_log_likelihoods_of_the_texts_alone(family: str) -> None:
    model = model_of(family)
    texts = {"loss": ("T", "he text"), "longer": ("Some context", " and what comes after it")}
    (batch,) = batches_of(model, [lm(name, *text) for name, text in texts.items()])
    for item, run in zip(batch.items, ReferenceExecutor(model).golden(batch).items, strict=True):
        context, text = texts[item.id]
        tokens = model.tokenizer.encode(context + text)
        with torch.inference_mode():
            logits = model.module(input_ids=torch.tensor([tokens])).logits[0, :-1].numpy()
        chosen = log_softmax(logits, axis=-1)[np.arange(len(tokens) - 1), tokens[1:]][len(context) - 1 :]
        assert run.answer.score == pytest.approx(chosen.mean(), rel=1e-4)


def test_options_are_compared_by_the_likelihood_of_their_tokens() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [choice("a", "The sky is", (" blue", " red", "?"))])
    (run,) = ReferenceExecutor(model).golden(batch).items
    scores = []
    for option in batch.items[0].continuations:
        tokens = model.tokenizer.encode("The sky is" + option)
        with torch.inference_mode():
            logits = model.module(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        scores.append(float(sum(logits[at, tokens[at + 1]] for at in range(9, len(tokens) - 1))))
    assert run.answer.output == str(int(np.argmax(scores)))


def test_a_trial_is_compared_on_the_golden_text() -> None:
    model = model_of("llama")
    executor = ReferenceExecutor(model)
    (batch,) = batches_of(model, [item for item in ITEMS if item.kind == "generation"])
    faults = parse_faults(f"weight {UP}[3,4] replace 40.0")
    golden, trial = executor.golden(batch, faults), executor.trial(batch, faults)
    assert any(a.answer.output != b.answer.output for a, b in zip(golden.items, trial.items, strict=True))
    for before, after in zip(golden.items, trial.items, strict=True):
        assert after.forced == before.forced
        assert after.apart is not None
        assert after.apart.rmse > 0
        assert after.apart.kl > 0
    assert [(one.tensor, one.index, one.new_value) for one in trial.struck] == [(UP, (3, 4), 40.0)]
    assert all(item.reached for item in trial.items)


def test_reached_items_are_those_whose_pass_the_fault_met() -> None:
    model = tiny_loaded("llama")
    model.module.generation_config.eos_token_id = None
    executor = ReferenceExecutor(model)
    (batch,) = batches_of(model, [generation("one", "A", 1), generation("three", "B", 3), generation("six", "C", 6)])

    def reached(line: str) -> set[str]:
        run = executor.trial(batch, parse_faults(line))
        return {item.id for item, found in zip(batch.items, run.items, strict=True) if found.reached}

    for site in (f"weight {NORM}[1]", "activation model.norm[1]"):
        assert reached(f"{site} flip 1 at first_token") == {"one", "three", "six"}
        assert reached(f"{site} flip 1 at decode:1") == {"three", "six"}
        assert reached(f"{site} flip 1 at decode:3") == {"six"}
        assert reached(f"{site} flip 1 at decode:6") == set()
    # Prompts have one token, so there is no prefill.
    assert reached(f"weight {NORM}[1] flip 1 at prefill") == set()


def test_activation_faults_strike_every_sequence_of_their_item() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [choice("words", "The sky is ", ("blue", "made"))])
    faults = parse_faults("activation model.norm[1] add 3.0 at decode:2")
    run = ReferenceExecutor(model).trial(batch, faults)
    assert sorted(one.row for one in run.struck) == [0, 1]
    assert {one.index for one in run.struck} == {(len("The sky is") + 1, 1)}


def test_a_fault_in_a_shared_context_strikes_once_and_reaches_every_option() -> None:
    model = model_of("llama")
    block = align([(5, 6, 7)] * 2, [(8,), (9, 10)], model.device, owners=(0, 0))
    clean = teacher_forced(model, block, frozenset(), lambda call: None)
    with Injection(model, parse_faults("activation model.layers.0[1] add 30.0 at prefill:1")) as injection:
        struck = teacher_forced(model, block, frozenset(), injection.begin_pass)
    assert [(one.row, one.index) for one in injection.struck] == [(0, (1, 1))]
    assert not any(torch.equal(row, other) for row, other in zip(struck, clean, strict=True))


def test_a_nan_is_told_and_leaves_the_model_as_it_was() -> None:
    model = model_of("llama")
    executor = ReferenceExecutor(model)
    batches = batches_of(model)
    before = [executor.golden(batch) for batch in batches]
    for batch in batches:
        run = executor.trial(batch, parse_faults(f"weight {NORM}[3] replace nan"))
        assert not any(item.answer.finite for item in run.items)
    fresh = ReferenceExecutor(model)
    assert all(same(fresh.golden(batch), old) for batch, old in zip(batches, before, strict=True))


def test_a_fault_whose_module_never_runs_is_an_error() -> None:
    model = tiny_loaded("llama")
    layer = model.module.get_submodule("model.layers.1.mlp")
    layer.forward = lambda hidden: hidden
    (batch, *_) = batches_of(model)
    with pytest.raises(ContractError, match="never made what it strikes"):
        ReferenceExecutor(model).trial(
            batch, parse_faults("activation model.layers.1.mlp.down_proj[1] flip 1 at first_token")
        )


def run_of(logits: list[np.ndarray], forced: tuple[int, ...] = ()) -> ItemRun:
    return ItemRun(Answer("", None, 0.0, (), True), forced, tuple(map(torch.from_numpy, logits)), True)


matrices = st.tuples(st.integers(1, 4), st.integers(2, 6)).flatmap(
    lambda shape: st.lists(arrays(np.float32, shape, elements=st.floats(-30, 30, width=32)), min_size=4, max_size=4)
)


@settings(max_examples=80)
@given(matrices)
def test_distance_by_brute_force(values: list[np.ndarray]) -> None:
    clean, faulty = values[:2], values[2:]
    found = distance(run_of(clean), run_of(faulty))
    assert found is not None
    differences = np.concatenate([(a.astype(float) - b).ravel() for a, b in zip(clean, faulty, strict=True)])
    assert found.rmse == pytest.approx(math.sqrt(np.mean(differences**2)), rel=1e-5, abs=1e-6)
    p, q = (log_softmax(np.concatenate(side).astype(float), axis=-1) for side in (clean, faulty))
    assert found.kl == pytest.approx(float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))), rel=1e-3, abs=1e-4)


def test_rounding_makes_no_divergence_less_than_nothing() -> None:
    random = generator(0, 0, "logits")
    for _ in range(40):
        logits = random.standard_normal((1, 100), dtype=np.float32)
        found = distance(run_of([logits]), run_of([logits + np.float32(1e-4) * random.random((1, 100), np.float32)]))
        assert found is not None
        assert found.kl >= 0


def test_texts_that_differ_have_no_distance() -> None:
    logits = [np.zeros((2, 3), dtype=np.float32)]
    assert distance(run_of(logits, (1, 2)), run_of(logits, (1, 3))) is None


def test_long_answers_are_compared_at_evenly_spread_positions() -> None:
    model = model_of("llama")
    (batch,) = batches_of(model, [lm("long", "T", "abcdefghij" * 20)])
    (run,) = ReferenceExecutor(model).golden(batch).items
    assert tuple(run.logits[0].shape) == (8, 100)
    tokens = model.tokenizer.encode("T" + "abcdefghij" * 20)
    with torch.inference_mode():
        logits = model.module(input_ids=torch.tensor([tokens[:-1]])).logits[0]
    places = [int(place) for place in np.linspace(0, 199, 8)]
    torch.testing.assert_close(run.logits[0], logits[places], rtol=1e-3, atol=1e-4)


def test_faults_are_given_as_any_sequence() -> None:
    model = model_of("llama")
    executor = ReferenceExecutor(model)
    (batch, *_) = batches_of(model)
    faults: list[Fault] = list(parse_faults(f"weight {NORM}[1] flip 30 from decode:1"))
    # In print NaN equals itself.
    assert repr(executor.trial(batch, faults)) == repr(executor.trial(batch, tuple(faults)))
