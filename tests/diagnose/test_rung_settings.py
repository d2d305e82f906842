"""Configurations and words that engines hold, against the reference's."""

from hashlib import blake2b

import pytest
import torch

from aftershock.capture import Weight
from aftershock.diagnose.rungs.sampling import Sampling
from aftershock.diagnose.rungs.settings import settings_rung, values
from aftershock.diagnose.rungs.weights import weights_rung
from aftershock.diagnose.weights import Part, weights_of
from aftershock.numerics import words
from tiny_models import tiny_loaded

GREEDY = Sampling()


def config(family, **overrides):
    return tiny_loaded(family, **overrides).module.config.to_dict()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mixtral", "phi3"])
def test_a_model_agrees_with_itself(family):
    rung = settings_rung({"config": config(family)}, config(family), GREEDY, GREEDY)
    assert rung.state == "agrees"


@pytest.mark.parametrize(
    ("family", "change", "component", "cause"),
    [
        ("llama", {"rms_norm_eps": 1e-3}, "attn_norm", "norm_eps"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "q_rope", "rope_theta"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "q_rope", "rope_scaling"),
        ("gemma3", {"sliding_window": 17}, "attention", "window_size"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 2}, "attention", "window_layers"),
        ("gemma2", {"final_logit_softcapping": 10.0}, "logits", "logit_softcap"),
        ("qwen3_moe", {"norm_topk_prob": True}, "router", "router_normalisation"),
        ("llama", {"attention_bias": True}, "q", "bias_extra"),
    ],
)
def test_a_value_that_differs_is_a_lead_with_both_values(family, change, component, cause):
    rung = settings_rung({"config": config(family, **change)}, config(family), GREEDY, GREEDY)
    assert {(one.component, one.cause) for one in rung.findings} == {(component, cause)}
    assert not any(one.confirmed for one in rung.findings)


def test_rotary_values_have_one_name_in_all_versions():
    old = {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0}}
    assert values(old) == values(new)


def test_metadata_of_a_gguf_file_is_read():
    own = {"num_attention_heads": 4, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 1e4}}
    told = {
        "general.architecture": "llama",
        "llama.attention.head_count": "4",
        "llama.attention.layer_norm_rms_epsilon": "0.000009999999747",
        "llama.rope.freq_base": "500000",
    }
    rung = settings_rung({"config": told}, own, None, GREEDY)
    assert [(one.cause, one.found, one.reference) for one in rung.findings] == [("rope_theta", 500000.0, 10000.0)]


def test_sampling_that_was_not_asked_for_is_a_lead():
    declared = Sampling(repetition_penalty=1.1, top_k=50)
    rung = settings_rung({}, {}, declared, GREEDY)
    assert [(one.cause, one.found, one.reference) for one in rung.findings] == [("repetition_penalty", 1.1, 1.0)]
    assert settings_rung({}, {}, None, GREEDY).state == "not checked"


NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def held(weights, dtype=torch.bfloat16):
    """What an engine that fuses nothing says of these tensors."""
    components = {"q_norm": "qk_norm", "k_norm": "qk_norm", "logits": "lm_head"}
    for part, tensor in weights.items():
        component = "norm" if part.kind.endswith("norm") and part.kind not in components else part.kind
        own = tensor.to(dtype).contiguous()
        yield Weight(
            name=f"{part.layer}.{part.kind}.{part.role}",
            component=components.get(part.kind, component),
            layer=None if part.layer < 0 else part.layer,
            shape=tuple(own.shape),
            dtype=NAMES[dtype],
            digest=blake2b(words(own).numpy().tobytes(), digest_size=16).hexdigest(),
        )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_rounded_to_the_targets_type_agree(family, dtype):
    weights = weights_of(tiny_loaded(family, dtype))
    rung = weights_rung(list(held(weights, dtype)), weights)
    assert rung.state == "agrees"
    assert f"{len(weights)} tensors" in rung.said


@pytest.mark.parametrize(
    ("part", "source", "cause"),
    [
        (Part("q", 1), Part("q", 0), "weight_of_other_layer"),
        (Part("gate", 1), Part("up", 1), "gate_up_swapped"),
        (Part("mlp_norm", 0), None, "weight_rows_wrong"),
    ],
)
def test_other_words_are_a_lead_with_where_they_come_from(part, source, cause):
    weights = weights_of(tiny_loaded("llama", num_hidden_layers=2))
    changed = {**weights, part: weights[part] * 2 if source is None else weights[source]}
    rung = weights_rung(list(held(changed)), weights)
    assert [(one.layers, one.cause, one.confirmed) for one in rung.findings] == [((part.layer,), cause, False)]


def test_what_has_another_shape_or_type_is_not_compared():
    weights = weights_of(tiny_loaded("llama"))
    entries = list(held(weights))
    padded = entries[0].model_copy(update={"shape": (128, 32)})
    packed = entries[1].model_copy(update={"dtype": "Q4_1"})
    assert weights_rung([], weights).state == "not checked"
    assert weights_rung([padded, packed], weights).state == "not checked"
    assert "2 can't be compared" in weights_rung([padded, packed, *entries[2:]], weights).said
