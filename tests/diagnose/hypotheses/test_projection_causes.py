"""Errors of linear maps in a live model: their words, their order, their bias, the precision of their input."""

import pytest
import torch

from aftershock.models import LoadedModel
from hand_planted import Plant, after, diagnosed, layers_of
from tiny_models import tiny_loaded


def no_bias(model: LoadedModel) -> None:
    for layer in layers_of(model):
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).bias = None


def constant_added(model: LoadedModel) -> None:
    after(layers_of(model)[0].mlp.gate_proj, lambda y: y + torch.linspace(-0.3, 0.3, 48).to(y.dtype))


def heads_moved(model: LoadedModel) -> None:
    weight = layers_of(model)[0].self_attn.q_proj.weight
    weight.copy_(weight.view(4, 8, -1)[[1, 0, 3, 2]].reshape(weight.shape))


def halves_interleaved(model: LoadedModel) -> None:
    for layer in layers_of(model):
        for name in ("q_proj", "k_proj"):
            weight = getattr(layer.self_attn, name).weight
            weight.copy_(weight.view(-1, 2, 4, weight.shape[1]).transpose(1, 2).reshape(weight.shape))


def transposed(model: LoadedModel) -> None:
    weight = layers_of(model)[1].self_attn.q_proj.weight
    weight.copy_(weight.T.clone())


def of_another_layer(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.down_proj.weight.copy_(layers_of(model)[0].mlp.down_proj.weight)


def scaled(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.v_proj.weight.mul_(1.5)


def rows_scaled(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.v_proj.weight[3:5].mul_(4)


def row_lost(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.k_proj.weight[6].zero_()


def shifted(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.up_proj.weight.add_(0.0625)


def gate_and_up(model: LoadedModel) -> None:
    mlp = layers_of(model)[1].mlp
    gate = mlp.gate_proj.weight.clone()
    mlp.gate_proj.weight.copy_(mlp.up_proj.weight)
    mlp.up_proj.weight.copy_(gate)


def shards_swapped(model: LoadedModel) -> None:
    weight = layers_of(model)[1].mlp.gate_proj.weight
    weight.copy_(weight.view(2, 24, -1)[[1, 0]].reshape(weight.shape))


def shards_of_inputs_swapped(model: LoadedModel) -> None:
    weight = layers_of(model)[1].mlp.down_proj.weight
    weight.copy_(weight.view(-1, 2, 24)[:, [1, 0]].reshape(weight.shape))


def heads_of_inputs_moved(model: LoadedModel) -> None:
    weight = layers_of(model)[1].self_attn.o_proj.weight
    weight.copy_(weight.view(-1, 4, 8)[:, [0, 2, 1, 3]].reshape(weight.shape))


def fused_by_shard(model: LoadedModel) -> None:
    """Two shards of q, k, v each, where all of q, then k, then v belongs."""
    weight = layers_of(model)[1].self_attn.qkv_proj.weight
    q, k, v = weight.clone().split([32, 16, 16])
    weight.copy_(torch.cat((q[:16], k[:8], v[:8], q[16:], k[8:], v[8:])))


def coarse_input(model: LoadedModel) -> None:
    down = layers_of(model)[1].mlp.down_proj
    down.forward = lambda x: torch.nn.functional.linear(x.to(torch.float8_e4m3fn).to(x.dtype), down.weight)


def wrong_word(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.up_proj.weight[7, 3] += 4


def wrong_rows(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.up_proj.weight[7:9] = torch.linspace(-1, 1, 64).view(2, 32).sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "plant", "component", "cause", "found"),
    [
        ("qwen2", no_bias, "q", "bias_missing", None),
        ("llama", constant_added, "gate", "bias_extra", ...),
        ("llama", heads_moved, "q", "weight_heads_permuted", "heads 1, 0, 3, 2"),
        ("llama", halves_interleaved, "q", "weight_rows_permuted", ...),
        ("llama", transposed, "q", "weight_transposed", None),
        ("llama", of_another_layer, "down", "weight_of_other_layer", 0),
        ("llama", scaled, "v", "weight_scale", 1.5),
        ("llama", rows_scaled, "v", "weight_scale", ...),
        ("llama", row_lost, "k", "weight_rows_wrong", ...),
        ("llama", shifted, "up", "weight_zero_point", ...),
        ("llama", gate_and_up, "gate", "gate_up_swapped", None),
        ("llama", shards_swapped, "gate", "shard_order", "2 shards in the order 1, 0"),
        ("llama", shards_of_inputs_swapped, "down", "shard_order", "1, 0"),
        ("llama", heads_of_inputs_moved, "o", "weight_heads_permuted", "0, 2, 1, 3"),
        ("phi3", fused_by_shard, "q", "shard_order", ...),
        ("llama", coarse_input, "down", "input_dtype", "float8_e4m3"),
        ("llama", wrong_word, "up", "weight_rows_wrong", ...),
        ("llama", wrong_rows, "up", "weight_rows_wrong", ...),
    ],
)
def test_the_cause_of_a_wrong_map(
    family: str, plant: Plant, component: str, cause: str, found: object, dtype: torch.dtype
) -> None:
    _, findings = diagnosed(tiny_loaded(family, dtype), plant)
    assert [(own.component, own.cause) for own in findings] == [(component, cause)]
    assert found in (findings[0].found, ...)


def test_the_rows_are_named_by_what_was_done_to_them() -> None:
    _, (finding,) = diagnosed(tiny_loaded("llama"), rows_scaled)
    assert (finding.found, finding.layers) == ("rows 3, 4 times 4.0, 4.0", (1,))
    _, (finding,) = diagnosed(tiny_loaded("llama"), wrong_word)
    assert finding.found == "1 words of rows 7"


def test_too_few_tokens_to_tell_the_words_leave_the_rows() -> None:
    prompts = (tuple(range(5, 25)),)
    _, (finding,) = diagnosed(tiny_loaded("llama"), wrong_rows, prompts=prompts)
    assert (finding.component, finding.cause, finding.found) == ("up", "weight_rows_wrong", "channels 7, 8 alone")
    assert finding.after is None
