"""The head is spared only where a trial's choice is known."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tasks import choice, generation

from aftershock.faults import Fault, parse_faults
from aftershock.models import LoadedModel, choose
from aftershock.numerics import generator, words
from aftershock.replay import Batch, FastExecutor, ReferenceExecutor, Run, make_batches
from aftershock.replay.head import doubt_of, gives_logits, head_in_parts, head_of, withheld
from aftershock.replay.shapes import Shapes
from tiny_models import tiny_loaded

model_of = cache(tiny_loaded)
SHAPES = Shapes(copies=1, call_tokens=512, continued_rows=8, head_rows=4)


def written(model: LoadedModel) -> Batch:
    (batch,) = make_batches([generation("a", "Say something", 12), generation("b", "Hi", 12)], model, 2, 0)
    return batch


def hidden_states(model: LoadedModel, seed: int, positions: int = 7) -> torch.Tensor:
    width = head_of(model).weight.shape[1]
    drawn = generator(seed, 0, "hidden states").standard_normal((2, positions, width), dtype=np.float32)
    return torch.from_numpy(drawn).to(model.dtype)


@given(st.integers(0, 2**20), st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 3.0]), st.booleans())
def test_margins_and_logits_lie_within_their_bounds(seed: int, size: float, half: bool) -> None:
    model = model_of("llama", torch.bfloat16 if half else torch.float32)
    head = head_of(model)
    golden = hidden_states(model, seed)
    with torch.inference_mode():
        choices = choose(head(golden), torch.zeros(golden.shape[:2], dtype=torch.int64))
        doubt = doubt_of(model, (golden,), choices, 0.0)
        moved = golden + (size * hidden_states(model, seed + 1).float()).to(model.dtype)
        known = doubt.known(0, 0, moved)
        logits = head(moved).float()
    own = logits.gather(-1, choices.tokens[..., None])[..., 0]
    others = logits.scatter(-1, choices.tokens[..., None], -torch.inf).amax(-1)
    assert bool((known.margins <= own - others).all())
    assert bool((known.best >= own.abs()).all())
    if size == 0:
        # And no looser than rounding makes them.
        torch.testing.assert_close(known.margins, choices.margins, rtol=0, atol=0.2 if half else 1e-3)


def test_a_state_that_is_no_number_tells_nothing() -> None:
    model = model_of("llama")
    golden = hidden_states(model, 1)
    with torch.inference_mode():
        choices = choose(head_of(model)(golden), torch.zeros(golden.shape[:2], dtype=torch.int64))
    known = doubt_of(model, (golden,), choices, 0.0).known(0, 0, golden * torch.nan)
    assert not bool((known.margins > 0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_position_has_the_same_logits_in_any_company(dtype: torch.dtype) -> None:
    head = head_of(model_of("llama", dtype))
    hidden = hidden_states(model_of("llama", dtype), 3)
    with torch.inference_mode(), head_in_parts(head, 4):
        together = head(hidden)
        some = head(hidden.flatten(0, 1)[[1, 5, 13]])
        nothing = head(hidden[:, :0])
    assert torch.equal(words(together.flatten(0, 1)[[1, 5, 13]]), words(some))
    assert nothing.shape == (2, 0, 100)
    assert "forward" not in head.__dict__


def test_a_withheld_head_puts_its_inputs_aside() -> None:
    model, inputs = model_of("llama"), []
    with torch.inference_mode(), withheld(head_of(model), inputs):
        model.module(input_ids=torch.tensor([[5, 6, 7]]))
    with torch.inference_mode():
        assert torch.equal(head_of(model)(inputs[0]), model.module(input_ids=torch.tensor([[5, 6, 7]])).logits)


def positions_of_the_head(model: LoadedModel, batch: Batch, line: str) -> list[int]:
    """How many positions each call of the head takes in a trial."""
    fast = FastExecutor(model, shapes=SHAPES)
    fast.golden(batch)
    seen: list[int] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    try:
        fast.trial(batch, parse_faults(line))
    finally:
        hook.remove()
    return seen


def test_the_head_takes_no_padding() -> None:
    model = model_of("llama")
    line = "weight model.layers.1.mlp.up_proj.weight[3,4] flip 26"
    (questions,) = make_batches(
        [choice("a", "The sky is ", ("blue", "made of cheese")), choice("b", "Go", ("on", "off"))], model, 2, 0
    )
    fed = [len(answer) for _, answer in questions.sequences]
    # All positions of a call reach a withheld head, padding too; then come those of the options' own tokens.
    taken = positions_of_the_head(model, questions, line)
    assert sum(taken[1::2]) == sum(1 + length for length in fed)
    assert sum(taken[::2]) > sum(taken[1::2])
    # And where everything is in doubt, no more than the answers' own tokens.
    (short,) = make_batches([generation("a", "Say something", 12), generation("b", "Hi", 2)], model, 2, 0)
    _, *own = positions_of_the_head(model, short, line.replace("flip 26", "replace 90.0"))
    assert 0 < max(own) <= 12 + 2


def test_models_that_cap_their_logits_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gemma3")
    assert gives_logits(model)
    monkeypatch.setattr(model.module.config, "final_logit_softcapping", 5.0)
    assert not gives_logits(model)


def run_and_head_calls(fast: FastExecutor, batch: Batch, faults: Sequence[Fault]) -> tuple[Run, list[int]]:
    """A trial, and how many positions each call of the head was given."""
    seen: list[int] = []
    hook = head_of(fast.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    try:
        return fast.trial(batch, faults), seen
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("line", "spared"),
    [
        ("weight model.layers.1.mlp.up_proj.weight[3,4] flip 0", True),
        ("weight model.layers.1.mlp.up_proj.weight[3,4] replace 90.0", False),
        # What comes after the layers may change the head itself.
        ("weight model.norm.weight[3] flip 0", False),
    ],
)
def test_the_head_runs_where_a_choice_is_in_doubt(line: str, spared: bool) -> None:
    model = model_of("llama")
    batch, faults = written(model), parse_faults(line)
    fast = FastExecutor(model, shapes=SHAPES)
    expected = ReferenceExecutor(model, shapes=SHAPES).trial(batch, faults)
    fast.golden(batch)
    run, seen = run_and_head_calls(fast, batch, faults)
    assert run.items == expected.items
    # 24 positions are predicted: that many reach a withheld head, then come the 16 whose logits are asked for.
    assert (seen == [24, 16]) == spared


def test_a_trial_whose_logits_grew_is_looked_at_again() -> None:
    model = tiny_loaded("qwen3")
    batch = written(model)
    # Where the stream is all in channel 14, token 99 has a logit far beyond golden's, where that channel is the least.
    with torch.no_grad():
        head_of(model).weight[99] = 20 * torch.eye(32)[14]
    faults = parse_faults("activation model.layers.1[14] add 1000.0 at decode:5")
    fast = FastExecutor(model, shapes=SHAPES)
    golden = fast.golden(batch)
    run, seen = run_and_head_calls(fast, batch, faults)
    assert run.items == ReferenceExecutor(model, shapes=SHAPES).trial(batch, faults).items
    # All 24 reach a withheld head, then come those asked for, then all that are the answers' own.
    withheld_first, asked, again, *_ = seen
    assert withheld_first == 24
    assert asked < again == sum(len(item.forced) for item in golden.items)
