"""Errors in prompts, samplers and stops change tokens as they say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.plants.building import asked, planted_target
from benchmarks.plants.cases import Plant, Prompts
from benchmarks.plants.in_sampling import Chooser
from benchmarks.plants.running import choose, generate
from benchmarks.plants.targets import Sampling, Target
from benchmarks.tiny_serving import tiny_loaded
from hypothesis import given
from hypothesis import strategies as st


def test_prompts_are_changed_as_said() -> None:
    target = asked(Target(tiny_loaded("gemma3"), ()), Prompts(chats=("Hello",)))
    (prompt,) = target.prompts

    def planted(operation: str, **parameters: Any) -> tuple[int, ...]:
        return planted_target(target, [Plant(operation=operation, **parameters)]).prompts[0]

    assert planted("repeat_first") == (1, *prompt)
    assert planted("drop_first") == prompt[1:]
    assert planted("drop_last") == prompt[:-1]
    assert planted("append", tokens=[2, 3]) == (*prompt, 2, 3)
    assert planted("keep_last", tokens=3) == prompt[-3:]
    assert planted("keep_first", tokens=3) == prompt[:3]
    assert planted("raise_ids", first=30, by=2) == tuple(token + 2 if token >= 30 else token for token in prompt)
    assert planted("render_chats", add_generation_prompt=False) == prompt[:-1]
    assert planted("without_template") == (1, *prompt[2:-2])


def test_the_clean_chat_begins_with_one_bos_and_opens_the_answer() -> None:
    (prompt,) = asked(Target(tiny_loaded("llama"), ()), Prompts(chats=("Hi",))).prompts
    assert (prompt[:2], prompt[-2:]) == ((1, 4), (6, 5))


LOGITS = torch.tensor([2.0, 1.9, 0.5, -1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sampling", "made", "token"),
    [
        (Sampling(), [], 0),
        (Sampling(repetition_penalty=1.3), [], 1),
        (Sampling(presence_penalty=0.5), [], 0),
        (Sampling(presence_penalty=0.5), [0], 1),
        (Sampling(runner_up_every=2), [], 0),
        (Sampling(runner_up_every=2), [3], 1),
        (Sampling(temperature=1.0, top_k=1), [], 0),
        (Sampling(temperature=1.0, top_p=0.01), [], 0),
        (Sampling(temperature=1.0), [], 3),
    ],
)
def test_a_token_is_chosen_as_the_settings_say(sampling: Sampling, made: list[int], token: int) -> None:
    assert choose(LOGITS, sampling, [0], made, 0.999) == token


@given(st.floats(0.1, 3.0), st.integers(0, 4), st.floats(0.05, 1.0), st.floats(0, 0.999999))
def test_only_tokens_that_the_settings_leave_are_drawn(heat: float, top_k: int, top_p: float, draw: float) -> None:
    token = choose(LOGITS, Sampling(temperature=heat, top_k=top_k, top_p=top_p), [], [], draw)
    chances = (LOGITS / heat)[: top_k or 4].softmax(0)
    assert token < (top_k or 4)
    assert token == 0 or float(chances[:token].sum()) < top_p


def test_an_answer_ends_with_a_stop_token() -> None:
    target = asked(Target(tiny_loaded("gemma3"), ()), Prompts(lengths=(9,)))
    (whole,) = generate(target, 6)
    (cut,) = generate(replace(target, sampling=Sampling(stop_ids=(whole[2],))), 6)
    assert cut == whole[: whole.index(whole[2]) + 1]


@given(st.integers(0, 5), st.floats(0, 4))
def test_generate_chooses_as_our_own_sampling_does(made: int, penalty: float) -> None:
    tokens = [0, *[index % 4 for index in range(made)]]
    sampling = Sampling(presence_penalty=penalty, runner_up_every=3)
    scores = Chooser(1, penalty, 3)(torch.tensor([tokens]), LOGITS[None])
    assert int(scores.argmax()) == choose(LOGITS, sampling, tokens[:1], tokens[1:], 0.0)
