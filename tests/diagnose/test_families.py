"""Families whose decoders differ from Llama's: healthy ones are no divergence, variants without a replica are told."""

from typing import Any

import pytest
import torch

from aftershock.capture import record
from aftershock.diagnose import diagnose
from aftershock.diagnose.architecture import architecture_of
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import forced
from aftershock.diagnose.weights import Part, weights_of
from aftershock.errors import InputError
from hand_made import replica_of, shown_by
from hand_planted import PROMPTS
from tiny_models import tiny_loaded

FAMILIES = ("qwen2_moe", "gpt2", "opt")

ALTERNATING: dict[str, Any] = {"num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_model_is_no_divergence(family: str, dtype: torch.dtype, attention: str) -> None:
    reference, target = (tiny_loaded(family, dtype) for _ in range(2))
    target.module.set_attn_implementation(attention)
    found = diagnose(reference, record(target, PROMPTS))
    assert found.understood
    assert not found.divergent
    assert found.verdict.startswith("no divergence")


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_layers_may_have_no_experts(family: str) -> None:
    model = tiny_loaded(family, **ALTERNATING)
    assert [own.mixture is None for own in architecture_of(model).layers] == [True, True, True, False]
    found = diagnose(model, record(model, PROMPTS))
    assert found.understood
    assert not found.divergent


def test_an_error_beside_layers_of_other_shapes_is_found() -> None:
    healthy, broken = (tiny_loaded("qwen2_moe", **ALTERNATING) for _ in range(2))
    broken.module.get_submodule("model.layers.3.mlp.shared_expert.up_proj").weight.mul_(1.5)
    (finding,) = diagnose(healthy, record(broken, PROMPTS)).findings
    assert (finding.component, finding.layers, finding.cause) == ("up", (3,), "weight_scale")


def test_a_map_that_is_stored_turned_round_is_the_right_way_round_and_no_copy() -> None:
    model = tiny_loaded("gpt2")
    stored = model.module.get_submodule("transformer.h.1.attn.c_attn").weight
    weights = weights_of(model)
    keys = weights[Part("k", 1)]
    assert torch.equal(keys, stored[:, 32:64].T)
    assert keys.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
    assert weights[Part("k", 1, "bias")].shape == (32,)
    assert weights[Part("up", 0)].shape == (48, 32)


def test_positions_are_part_of_the_embedding() -> None:
    model = tiny_loaded("opt")
    replica = replica_of(model)
    tokens, target = shown_by(model, PROMPTS)
    table = replica.weights[Part("position", -1)]
    expected = replica.weights[Part("embedding", -1)][tokens.ids] + table[tokens.positions + 2]
    assert torch.equal(target[Point("embedding")].values, expected)
    assert torch.equal(dict(forced(replica, tokens, target))[Point("embedding")], expected)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 16}, "model.decoder.project_out.weight"),
        ("gpt_neox", {}, "gpt_neox"),
    ],
)
def test_a_variant_without_a_replica_is_refused(family: str, settings: dict[str, Any], named: str) -> None:
    model = tiny_loaded(family, **settings)
    with pytest.raises(InputError, match=named):
        diagnose(model, record(model, PROMPTS))
