"""Errors of LayerNorms and of maps that are stored turned round, in a live GPT-2 and OPT."""

from typing import Any

import pytest
import torch

from aftershock.models import LoadedModel
from hand_planted import Plant, diagnosed, layers_of
from tiny_models import tiny_loaded


def no_bias_of_a_norm(model: LoadedModel) -> None:
    layers_of(model)[1].ln_1.bias.zero_()


def another_bias_of_a_norm(model: LoadedModel) -> None:
    layers_of(model)[1].ln_2.bias.add_(0.5)


def weight_of_a_norm(model: LoadedModel) -> None:
    layers_of(model)[1].ln_2.weight[3:9].mul_(1.7)


def another_norm(model: LoadedModel) -> None:
    layers_of(model)[1].ln_2.load_state_dict(layers_of(model)[1].ln_1.state_dict())


def not_centred(model: LoadedModel) -> None:
    norm: Any = layers_of(model)[1].ln_1

    def forward(x: torch.Tensor) -> torch.Tensor:
        size = x.float().square().mean(-1, keepdim=True)
        return (x.float() * torch.rsqrt(size + norm.eps) * norm.weight + norm.bias).to(x.dtype)

    norm.forward = forward


def other_eps(model: LoadedModel) -> None:
    layers_of(model)[1].ln_1.eps = 0.1


def bias_of_queries(model: LoadedModel) -> None:
    layers_of(model)[1].attn.c_attn.bias[:32] = 0


def transposed(model: LoadedModel) -> None:
    weight = layers_of(model)[1].attn.c_proj.weight
    weight.copy_(weight.T.clone())


def other_function(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.act = torch.nn.ReLU()


def map_of_another_layer(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.c_proj.load_state_dict(layers_of(model)[0].mlp.c_proj.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plant", "component", "cause", "found"),
    [
        (no_bias_of_a_norm, "attn_norm", "bias_missing", None),
        (another_bias_of_a_norm, "mlp_norm", "bias_extra", ...),
        (weight_of_a_norm, "mlp_norm", "norm_weight", "6 of 32 words differ"),
        (another_norm, "mlp_norm", "norm_weight", "that of attn_norm"),
        (not_centred, "attn_norm", "norm_centred", "RMSNorm"),
        (other_eps, "attn_norm", "norm_eps", ...),
        (bias_of_queries, "q", "bias_missing", None),
        (transposed, "o", "weight_transposed", None),
        (other_function, "activation", "activation_function", "relu"),
        (map_of_another_layer, "down", "weight_of_other_layer", 0),
    ],
)
def test_the_cause_in_a_gpt2(plant: Plant, component: str, cause: str, found: object, dtype: torch.dtype) -> None:
    _, findings = diagnosed(tiny_loaded("gpt2", dtype), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [(component, cause, (1,))]
    assert found in (findings[0].found, ...)


def gelu(model: LoadedModel) -> None:
    layers_of(model)[1].activation_fn = torch.nn.GELU()


def no_bias_of_a_map(model: LoadedModel) -> None:
    layers_of(model)[1].fc1.bias.zero_()


def scaled_queries(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.q_proj.weight.mul_(1.5)


def scaled_twice(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.scaling **= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plant", "component", "cause"),
    [
        (gelu, "activation", "activation_function"),
        (no_bias_of_a_map, "up", "bias_missing"),
        (scaled_queries, "q", "weight_scale"),
        (scaled_twice, "attention", "attention_scale"),
    ],
)
def test_the_cause_in_an_opt(plant: Plant, component: str, cause: str, dtype: torch.dtype) -> None:
    _, findings = diagnosed(tiny_loaded("opt", dtype), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [(component, cause, (1,))]


def coarse_squares(model: LoadedModel) -> None:
    for layer in layers_of(model):
        norm: Any = layer.ln_2

        def forward(x: torch.Tensor, norm: Any = norm) -> torch.Tensor:
            short = x.bfloat16()
            short = short - short.mean(-1, keepdim=True)
            size = short.square().mean(-1, keepdim=True)
            scaled = norm.weight.bfloat16() * (short * torch.rsqrt(size + norm.eps))
            return (scaled + norm.bias.bfloat16()).to(x.dtype)

        norm.forward = forward


def test_a_layer_norm_in_a_lower_precision() -> None:
    _, (finding,) = diagnosed(tiny_loaded("gpt2"), coarse_squares)
    assert (finding.component, finding.cause, finding.found) == ("mlp_norm", "accumulation_dtype", "bfloat16")
