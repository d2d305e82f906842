"""The ladder as a whole: a target against its reference, from tokens to sampled tokens."""

import pytest
import torch
from engine_like import said

from aftershock.capture import Bundle, Request, record
from aftershock.diagnose import alignment_with, default_prompts, diagnose
from aftershock.errors import InputError
from aftershock.numerics import generator
from tiny_models import tiny_loaded

PROMPTS = [list(range(5, 49)), list(range(20, 28)), list(range(7, 51))]
NAMES = (
    "tokens",
    "positions",
    "stop",
    "settings",
    "weights",
    "reference",
    "activations",
    "cache",
    "logits",
    "sampler",
)


def model_of(family="llama", dtype=torch.float32, **overrides):
    return tiny_loaded(family, dtype, **{"num_hidden_layers": 3, **overrides})


@pytest.fixture(scope="module")
def reference():
    return model_of()


@pytest.fixture(scope="module")
def clean(reference):
    return record(reference, PROMPTS)


def states(found):
    return {rung.name: rung.state for rung in found.rungs}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_a_target_that_computes_what_its_reference_does_is_no_divergence(family):
    own = model_of(family, torch.bfloat16)
    found = diagnose(own, record(own, PROMPTS), PROMPTS)
    assert (found.divergent, found.understood, found.findings, found.suspects) == (False, True, (), ())
    assert tuple(rung.name for rung in found.rungs) == NAMES
    assert "differs" not in states(found).values()
    assert found.verdict.startswith("no divergence: tokens, positions, activations, logits agree; look at")
    assert found.reproduce == ""
    assert max(one.local for one in found.curve) < found.threshold
    assert max(one.free for one in found.curve) < found.threshold


def test_a_wrong_component_is_named_with_cause_layer_and_parameter(reference):
    suspect = model_of()
    suspect.module.model.layers[1].self_attn.scaling *= 1.2
    found = diagnose(reference, record(suspect, PROMPTS), PROMPTS)
    assert found.divergent
    assert (found.component, found.cause, found.layers) == ("attention", "attention_scale", (1,))
    assert found.findings[0].found == pytest.approx(1.2 * 8**-0.5, rel=1e-3)
    assert found.verdict == "attention is wrong in layer 1: attention_scale, scale 0.424264 in place of 0.353553"
    assert states(found)["activations"] == "differs"
    assert found.suspects[0].component == "attention"
    assert found.reproduce.startswith("request 1 alone shows it: 8 tokens")
    assert found.picture is not None
    assert "layer 1 attention" in found.picture.points
    free = {one.point: one.free for one in found.curve}
    local = {one.point: one.local for one in found.curve}
    # What follows inherits the error in the run, and is right on the inputs that it had.
    assert free["layer 2 down"] > found.threshold > local["layer 2 down"]
    assert free["layer 0 down"] < found.threshold


def test_two_errors_apart_are_both_found(reference):
    suspect = model_of()
    suspect.module.model.layers[0].self_attn.scaling *= 1.3
    suspect.module.model.layers[2].post_attention_layernorm.variance_epsilon = 0.3
    found = diagnose(reference, record(suspect, PROMPTS), PROMPTS)
    assert [(one.component, one.cause, one.layers) for one in found.findings] == [
        ("attention", "attention_scale", (0,)),
        ("mlp_norm", "norm_eps", (2,)),
    ]


def test_other_tokens_are_the_verdict_and_the_model_is_checked_all_the_same(reference):
    suspect = model_of()
    suspect.module.model.layers[1].self_attn.scaling *= 1.2
    found = diagnose(reference, record(suspect, [prompt[3:] for prompt in PROMPTS]), PROMPTS)
    assert [(one.component, one.cause) for one in found.findings] == [
        ("tokens", "truncated_prompt"),
        ("attention", "attention_scale"),
    ]
    assert found.verdict == "the target reads other tokens: truncated_prompt, and 1 more"


def test_a_setting_that_differs_backs_what_was_computed(reference):
    config = reference.module.config.to_dict()
    suspect = model_of(rms_norm_eps=0.05)
    bundle = record(suspect, PROMPTS)
    found = diagnose(reference, said(bundle, settings={"config": suspect.module.config.to_dict()}), PROMPTS)
    assert {one.cause for one in found.findings} == {"norm_eps"}
    assert found.findings[0].confirmed
    assert "rms_norm_eps is 0.05 in the target's configuration" in found.findings[0].evidence
    assert found.findings[0].found == pytest.approx(0.05, rel=0.01)
    found = diagnose(reference, said(bundle, settings={"config": config}), PROMPTS)
    assert "configuration" not in found.findings[0].evidence


def test_a_setting_that_differs_without_effect_is_told_and_is_no_divergence(reference, clean):
    config = {**reference.module.config.to_dict(), "rms_norm_eps": 0.05}
    found = diagnose(reference, said(clean, settings={"config": config}), PROMPTS)
    assert not found.divergent
    assert states(found)["settings"] == "differs"
    assert "settings (target and reference disagree about rms_norm_eps)" in found.verdict


def test_an_error_that_only_another_run_has_is_found_and_said_to_be_its(reference, clean):
    suspect = model_of()
    suspect.module.model.layers[1].self_attn.scaling *= 1.2
    other = record(suspect, PROMPTS)
    found = diagnose(reference, clean, PROMPTS, beside=[clean, other])
    assert states(found)["other runs"] == "differs"
    assert (found.component, found.cause) == ("attention", "attention_scale")
    assert found.findings[0].evidence.startswith("in run 2 beside the target's")
    found = diagnose(reference, other, PROMPTS, beside=[other])
    assert states(found)["other runs"] == "agrees"
    assert len(found.findings) == 1


def test_positions_that_the_target_declares_are_a_lead_that_the_rotation_decides(reference, clean):
    requests = tuple(
        request.model_copy(update={"positions": tuple(place + 1 for place in request.positions)})
        for request in clean.manifest.requests
    )
    found = diagnose(reference, said(clean, requests=requests), PROMPTS)
    assert states(found)["positions"] == "differs"
    assert not found.divergent  # rotary attention is the same from any position on


def test_tokens_that_do_not_follow_from_their_logits_are_the_samplers_doing(reference, clean):
    second = clean.logits.topk(2, -1).indices[:, 1].tolist()
    ends = [
        start + len(request.tokens)
        for start, request in zip(clean.manifest.starts, clean.manifest.requests, strict=True)
    ]
    requests = tuple(
        request.model_copy(update={"prompt_tokens": 1, "sampled": tuple(second[end - len(request.tokens) : end])})
        for request, end in zip(clean.manifest.requests, ends, strict=True)
    )
    settings = {"sampling": {"temperature": 0.0, "ignore_eos": True}}
    found = diagnose(reference, said(clean, requests=requests, settings=settings))
    assert [(one.component, one.cause) for one in found.findings] == [("sampler", "not_the_argmax")]


def test_a_reference_that_is_not_understood_is_not_held_against_the_target(clean):
    strange = model_of()
    strange.module.model.layers[1].self_attn.scaling *= 1.5
    found = diagnose(strange, clean, PROMPTS)
    assert (found.understood, found.divergent) == (False, False)
    assert found.verdict.startswith("the reference itself computes layer 1 attention otherwise")


def test_a_target_without_the_layers_asked_for_hides_which_part_is_wrong(reference):
    suspect = model_of()
    suspect.module.model.layers[1].self_attn.scaling *= 1.2
    bundle = record(suspect, PROMPTS)
    kept = tuple(one for one in bundle.manifest.records if "attn.q_proj" not in one.module)
    found = diagnose(reference, said(bundle, records=kept), PROMPTS)
    assert found.component == "attention"
    assert any("which of these is wrong" in one and "q" in one for one in found.invisible)


def test_a_map_that_was_found_can_be_given_again(reference, clean):
    known = alignment_with(reference, clean)
    assert diagnose(reference, clean, PROMPTS, known=known).verdict == diagnose(reference, clean, PROMPTS).verdict


def test_built_in_prompts_go_beyond_blocks_and_windows():
    windowed = tiny_loaded("gemma3", sliding_window=200)
    lengths = [len(windowed.tokenizer(prompt)["input_ids"]) for prompt in default_prompts(windowed)]
    assert max(lengths) > 200
    lengths = [len(windowed.tokenizer(prompt)["input_ids"]) for prompt in default_prompts(model_of())]
    assert max(lengths) >= 64
    assert max(lengths) <= 512
    assert len(set(lengths)) > 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bundle: (bundle, PROMPTS[:1]), "1 prompts, where the bundle has 3 requests"),
        (
            lambda bundle: (
                said(bundle, requests=(Request(id="0", tokens=(99, 100), positions=(0, 1)),)),
                None,
            ),
            "reads token 100, the reference has 100",
        ),
        (lambda bundle: (said(bundle, records=()), PROMPTS), "no value of the target"),
        (lambda bundle: (said(bundle, dtype="int7"), PROMPTS), "dtype is int7"),
    ],
)
def test_what_can_not_be_compared_is_one_sentence(reference, clean, change, words):
    bundle, prompts = change(clean)
    with pytest.raises(InputError, match=words):
        diagnose(reference, bundle, prompts)


def test_a_family_without_a_replica_is_refused_by_name():
    other = tiny_loaded("gpt_neox")
    with pytest.raises(InputError, match="gpt_neox"):
        diagnose(other, record(other, PROMPTS), PROMPTS)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"hidden_size": 48, "num_attention_heads": 6}, "no value of the target"),
        ({"num_hidden_layers": 5}, "has a layer 4, the reference 3 layers"),
    ],
)
def test_a_model_of_another_shape_shows_nothing_of_the_reference(reference, overrides, words):
    other = model_of(**overrides)
    with pytest.raises(InputError, match=words):
        diagnose(reference, record(other, PROMPTS), PROMPTS)


def test_a_configuration_of_another_size_is_another_model(reference, clean):
    config = model_of(intermediate_size=64).module.config.to_dict()
    with pytest.raises(InputError, match="intermediate_size 64, the reference 48: they are not the same model"):
        diagnose(reference, said(clean, settings={"config": config}), PROMPTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_words_that_were_rounded_for_a_wider_engine_are_followed_and_named(reference, dtype):
    coarse = model_of()
    for parameter in coarse.module.parameters():
        parameter.copy_(parameter.to(dtype))
    found = diagnose(reference, record(coarse, PROMPTS), PROMPTS)
    name = str(dtype).removeprefix("torch.")
    assert {(one.cause, one.found) for one in found.findings} == {("weight_precision", name)}
    assert {one.component for one in found.findings} >= {"embedding", "attn_norm", "q", "o", "gate", "down"}


def test_rounding_noise_of_the_embedding_is_no_vector_for_each_position(reference):
    other = model_of()
    rows = other.module.get_submodule("model.embed_tokens").weight
    rows.mul_(1 + 1e-3 * torch.from_numpy(generator(0, 0, "rows").standard_normal(rows.shape)))
    found = diagnose(reference, record(other, [[5, 6, 7, 5, 6, 7, 8, 8], [8, 7, 6, 5]]), None)
    assert (found.component, found.cause) == ("embedding", "weight_rows_wrong")


def test_of_very_many_logits_some_rows_are_compared(reference, monkeypatch):
    monkeypatch.setattr("aftershock.diagnose.replaying.MOST", 10 * 100)
    untied = {"tie_word_embeddings": False}
    right, wrong = model_of(**untied), model_of(**untied)
    wrong.module.get_submodule("lm_head").weight.mul_(1.5)
    found = diagnose(right, record(wrong, PROMPTS), PROMPTS)
    assert (found.component, found.cause) == ("logits", "logit_multiplier")
    assert "10 rows of logits" in next(rung.said for rung in found.rungs if rung.name == "logits")


@pytest.mark.parametrize(
    ("first", "state", "words"),
    [(0, "agrees", "not for the cache's sake"), (40, "differs", "the error is in what is read back")],
)
def test_the_cache_is_suspected_where_tokens_that_read_it_are_worse(reference, first, state, words):
    wrong = model_of()

    def ruffled(_, given):
        values = given[0].clone()
        values[:, first:, :4] += 0.1
        return (values, *given[1:])

    wrong.module.get_submodule("model.layers.1.self_attn.o_proj").register_forward_pre_hook(ruffled)
    bundle = record(wrong, [PROMPTS[0]])
    hooked = bundle.manifest.model_copy(update={"passes": (tuple(range(40)), *((token,) for token in range(40, 44)))})
    rungs = {rung.name: rung for rung in diagnose(reference, Bundle(hooked, bundle.tensors), PROMPTS[:1]).rungs}
    assert rungs["cache"].state == state
    assert rungs["cache"].said.endswith(words)
