"""Sampled tokens against the logits they were taken from, and where texts end."""

import numpy as np
import pytest
import torch

from aftershock.capture import Bundle, Engine, Logits, Manifest, Request, Stored
from aftershock.diagnose.rungs.sampler import Steps, follows, penalised, sampler_rung, steps_of
from aftershock.diagnose.rungs.sampling import Sampling, asked_sampling, sampling_of
from aftershock.diagnose.rungs.stop import stop_rung
from aftershock.numerics import generator

VOCABULARY, PROMPT, COUNT = 60, 12, 40
GREEDY = Sampling()


def sampled_bundle(choose, texts=3):
    """A bundle whose tokens `choose` took: (scores before it, draws) -> token."""
    draws = generator(0, 0, "sampler test")
    requests, rows, logits, start = [], [], [], 0
    for number in range(texts):
        tokens = [int(token) for token in draws.integers(0, VOCABULARY, PROMPT)]
        sampled = []
        for step in range(COUNT):
            row = draws.normal(size=VOCABULARY) * 3
            # A text likes to repeat itself, as greedy ones do.
            row[tokens[-6:]] += 3
            rows.append(start + PROMPT - 1 + step)
            logits.append(row)
            sampled.append(choose(row, tokens[:PROMPT], sampled, draws))
            tokens.append(sampled[-1])
        fed = tuple(tokens[:-1])
        requests.append(
            Request(
                id=str(number),
                tokens=fed,
                positions=tuple(range(len(fed))),
                prompt_tokens=PROMPT,
                sampled=tuple(sampled),
            )
        )
        start += len(fed)
    stored = Stored(file="a.safetensors", key="logits", dtype="F32", shape=(len(rows), VOCABULARY))
    manifest = Manifest(
        engine=Engine(name="e", version="1"),
        model="m",
        dtype="float32",
        requests=tuple(requests),
        rows={"taken": tuple(rows)},
        records=(),
        logits=Logits(span="taken", stored=stored),
    )
    return Bundle(manifest, {stored: torch.tensor(np.array(logits), dtype=torch.float32)})


def argmin(row, prompt, sampled, draws):
    return int(row.argmin())


def argmax(row, prompt, sampled, draws):
    return int(row.argmax())


def with_repetition_penalty(row, prompt, sampled, draws):
    seen = np.isin(np.arange(VOCABULARY), prompt + sampled)
    return int(np.where(seen, np.where(row > 0, row / 1.3, row * 1.3), row).argmax())


def with_presence_penalty(row, prompt, sampled, draws):
    return int((row - 0.9 * np.isin(np.arange(VOCABULARY), sampled)).argmax())


def drawn(temperature, top_k=VOCABULARY):
    def choose(row, prompt, sampled, draws):
        shares = np.exp(row / temperature) * (row >= np.sort(row)[-top_k])
        return int(draws.choice(VOCABULARY, p=shares / shares.sum()))

    return choose


def second(row, prompt, sampled, draws):
    return int(row.argsort()[-2])


def now_and_then_second(row, prompt, sampled, draws):
    return int(row.argsort()[-2 if len(sampled) % 4 == 3 else -1])


@pytest.mark.parametrize(
    ("choose", "asked", "cause", "value"),
    [
        (with_repetition_penalty, GREEDY, "repetition_penalty", 1.3),
        (with_presence_penalty, GREEDY, "presence_penalty", 0.9),
        (drawn(0.7), GREEDY, "temperature", 0.7),
        (second, GREEDY, "not_the_argmax", None),
        (now_and_then_second, GREEDY, "not_the_argmax", None),
        (argmin, GREEDY, "not_the_argmax", None),
        (drawn(1.5), Sampling(temperature=0.6), "temperature", 1.5),
        (argmax, Sampling(temperature=1.0), "temperature", 0.0),
        (drawn(1.0), Sampling(temperature=1.0, top_k=2), "top_k", None),
        (drawn(1.0), Sampling(temperature=1.0, top_p=0.3), "top_p", None),
    ],
)
def test_a_sampler_that_does_something_else_is_told_with_its_parameter(choose, asked, cause, value):
    rung = sampler_rung(steps_of(sampled_bundle(choose)), asked, None)
    assert rung.state == "differs"
    finding = rung.findings[0]
    assert (finding.component, finding.cause) == ("sampler", cause)
    if value is not None:
        assert finding.found == pytest.approx(value, abs=0.2)


@pytest.mark.parametrize(
    ("choose", "asked"),
    [
        (argmax, GREEDY),
        (with_repetition_penalty, Sampling(repetition_penalty=1.3)),
        (drawn(0.7), Sampling(temperature=0.7)),
        (drawn(1.0, top_k=5), Sampling(temperature=1.0, top_k=5)),
    ],
)
def test_a_sampler_that_does_what_it_was_asked_for_agrees(choose, asked):
    assert sampler_rung(steps_of(sampled_bundle(choose)), asked, None).state == "agrees"


def test_what_the_target_declares_itself_explains_before_anything_is_fitted():
    steps = steps_of(sampled_bundle(with_repetition_penalty))
    finding = sampler_rung(steps, GREEDY, Sampling(repetition_penalty=1.25)).findings[0]
    assert finding.found != 1.25  # it does not explain them
    finding = sampler_rung(steps, GREEDY, Sampling(repetition_penalty=1.3)).findings[0]
    assert (finding.found, finding.reference) == (1.3, 1.0)


def test_no_sampled_token_is_nothing_to_check():
    bundle = sampled_bundle(argmax)
    silent = Bundle(bundle.manifest.model_copy(update={"logits": None}), {})
    assert sampler_rung(steps_of(silent), GREEDY, None).state == "not checked"


def test_penalties_follow_their_definitions():
    steps = Steps(
        logits=torch.tensor([[2.0, -2.0, 2.0, -2.0]], dtype=torch.float64),
        taken=torch.tensor([0]),
        tie=torch.tensor([0.0], dtype=torch.float64),
        counts=torch.tensor([[0, 3, 0, 0]]),
        seen=torch.tensor([[True, True, False, False]]),
        names=("a",),
    )
    found = penalised(steps, Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25))
    assert found.tolist() == [[1.0, -5.25, 2.0, -2.0]]
    assert follows(steps, GREEDY).tolist() == [True]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"temperature": 0.0, "max_tokens": 4, "top_k": -1}, Sampling(max_new_tokens=4)),
        ({"do_sample": False, "temperature": 0.7, "max_new_tokens": 4}, Sampling(max_new_tokens=4)),
        ({"do_sample": True, "top_p": 0.5}, Sampling(temperature=1.0, top_p=0.5)),
        ({"repetition_penalty": 1.1, "stop": ["x"], "seed": None}, Sampling(repetition_penalty=1.1)),
    ],
)
def test_engines_words_for_sampling_are_one(settings, found):
    assert sampling_of(settings) == found


def test_what_was_asked_for_is_greedy_unless_options_say_otherwise():
    of_model = Sampling(temperature=0.6)
    assert asked_sampling({}, of_model) == GREEDY
    assert asked_sampling({"options": {"sampling": "default"}}, of_model) == of_model
    assert asked_sampling({"options": {"sampling": {"top_k": 3}}}, of_model) == Sampling(top_k=3)


def text(*sampled):
    return Request(id="7", tokens=(5, 6), positions=(0, 1), prompt_tokens=2, sampled=sampled)


LIMIT = Sampling(max_new_tokens=4)


@pytest.mark.parametrize(
    ("sampled", "cause"),
    [((9, 3, 8, 7), "stop_token_missing"), ((9, 8), "stop_too_early"), ((9, 8, 7, 6), None), ((9, 3), None)],
)
def test_a_text_ends_at_the_first_end_token_or_at_its_limit(sampled, cause):
    rung = stop_rung([text(*sampled)], {2, 3}, LIMIT, {})
    assert [one.cause for one in rung.findings] == ([] if cause is None else [cause])


def test_end_tokens_that_the_target_does_not_name_are_a_lead():
    settings = {"special_tokens": {"eos": 2}, "sampling": {"stop_token_ids": [], "eos_token_id": [2]}}
    finding = stop_rung([text(9, 8, 7, 6)], {2, 3}, LIMIT, settings).findings[0]
    assert (finding.cause, finding.reference, finding.confirmed) == ("stop_token_missing", 3, False)
    assert stop_rung([text(9, 8, 7, 6)], {2}, LIMIT, settings).state == "agrees"


def test_a_target_that_samples_nothing_or_was_told_to_go_on_is_not_checked():
    assert stop_rung([text()], {2}, LIMIT, {}).state == "not checked"
    assert stop_rung([text(2, 2)], {2}, Sampling(ignore_eos=True), {}).state == "not checked"
    named = {"sampling": {"stop_token_ids": [2]}}
    assert stop_rung([text(2, 2)], {2}, Sampling(ignore_eos=True), named).state == "differs"
