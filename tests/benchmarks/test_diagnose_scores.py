"""How a diagnosis is held against what was planted."""

import pytest
import torch
from benchmarks.diagnose_bundles import joined
from benchmarks.diagnose_scores import Score, figures, missed, score
from benchmarks.plants.cases import Case

from aftershock.capture import record
from aftershock.diagnose import Diagnosis, Finding, Subject, Suspect
from tiny_models import tiny_loaded


def case_of(**expected):
    return Case.model_validate(
        {
            "name": "a case",
            "author": "independent",
            "engine": "transformers",
            "model": "tiny:llama",
            "dtype": "float32",
            "why": "to be scored",
            "prompts": {"lengths": [9]},
            "expected": expected,
        }
    )


WINDOW = {"component": ["attention"], "layers": [1], "causes": ["window_size"]}
SUBJECT = Subject(target="t", reference="r", dtype="float32", requests=1, tokens=9)


def found_of(findings=(), suspects=()):
    return Diagnosis(
        verdict="said",
        divergent=bool(findings),
        understood=True,
        subject=SUBJECT,
        findings=tuple(findings),
        suspects=tuple(suspects),
        rungs=(),
        threshold=1.5,
        curve=(),
        picture=None,
        alignment="",
        unmatched=(),
        reproduce="",
        invisible=(),
    )


def finding(component="attention", cause="window_size", layers=(1,), **more):
    return Finding(component=component, cause=cause, layers=layers, evidence="", **more)


def suspect(component, layers=(1,)):
    return Suspect(component=component, layers=layers, ratio=9.0, where="")


@pytest.mark.parametrize(
    ("found", "component_1", "component_5", "cause"),
    [
        (found_of([finding()]), True, True, True),
        (found_of([finding(cause="unknown")]), True, True, False),
        (found_of([finding(layers=(0, 2))]), False, False, False),
        (found_of([finding("q_rope", "rope_theta"), finding()]), False, True, False),
        (found_of([finding("q_rope", "rope_theta")], [suspect("q_rope"), suspect("attention")]), False, True, False),
        (found_of([finding("q_rope", "rope_theta")], [suspect("k")] * 5 + [suspect("attention")]), False, False, False),
        (found_of(), False, False, False),
    ],
)
def test_component_layer_and_cause_have_to_be_right(found, component_1, component_5, cause):
    one = score(case_of(**WINDOW), found, 1.0)
    assert (one.component_1, one.component_5, one.cause) == (component_1, component_5, cause)


@pytest.mark.parametrize(("value", "right"), [(17.0, True), (17.1, True), (18.0, False), ("17", False), (None, False)])
def test_a_parameter_counts_within_its_tolerance(value, right):
    wanted = {**WINDOW, "parameter": {"name": "window", "value": 17, "tolerance": 0.01}}
    assert score(case_of(**wanted), found_of([finding(parameter="window", found=value)]), 1.0).parameter is right
    assert score(case_of(**WINDOW), found_of([finding()]), 1.0).parameter is None


def test_a_case_that_ends_without_a_diagnosis_is_missed_and_a_control_an_alarm():
    assert not missed(case_of(**WINDOW), "crashed", 1.0).divergent
    assert missed(case_of(), "crashed", 1.0).divergent


def test_figures_keep_authors_the_vocabulary_and_the_noise_apart():
    right, wrong = found_of([finding()]), found_of([finding("k", "unknown")])
    unknown = {**WINDOW, "causes": ["unknown"]}
    scores = [
        score(case_of(**WINDOW), right, 1.0),
        score(case_of(**WINDOW), wrong, 1.0),
        score(case_of(**unknown), found_of([finding(cause="unknown")]), 1.0),
        score(case_of(**WINDOW).model_copy(update={"author": "builder"}), wrong, 1.0),
        score(case_of(**WINDOW).model_copy(update={"detectable": False}), found_of(), 1.0),
        score(case_of(), found_of(), 1.0),
        score(case_of(), wrong, 1.0),
    ]
    found = figures(scores)
    assert (found["all"]["pass@1"]["estimate"], found["all"]["pass@1"]["n"]) == (0.5, 4)
    assert found["independent"]["component@1"]["estimate"] == pytest.approx(2 / 3)
    assert found["independent, in the vocabulary"]["pass@1"]["estimate"] == 0.5
    assert found["independent, outside the vocabulary"]["pass@1"]["estimate"] == 1.0
    assert found["builder"]["pass@1"]["estimate"] == 0.0
    assert found["controls"]["false alarms"]["estimate"] == 0.5
    assert found["beneath the noise"] == {"n": 1, "noticed": 0}
    assert all(isinstance(one, Score) for one in scores)


def test_bundles_of_single_prompts_are_one_bundle():
    model = tiny_loaded("llama", torch.float32)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12]]
    whole = joined([record(model, [prompt]) for prompt in prompts])
    assert [request.tokens for request in whole.manifest.requests] == [tuple(prompt) for prompt in prompts]
    together = record(model, prompts)
    for one, other in zip(whole.manifest.records, together.manifest.records, strict=True):
        assert one.name == other.name
        torch.testing.assert_close(whole.output(one), together.output(other))
    torch.testing.assert_close(whole.logits, together.logits)
