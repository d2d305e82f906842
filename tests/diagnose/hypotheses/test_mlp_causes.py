"""Errors of activations, residual sums and mixtures of experts in a live model."""

from typing import Any

import pytest
import torch

from aftershock.models import LoadedModel
from hand_planted import Plant, before, diagnosed, layers_of
from tiny_models import tiny_loaded


def another_function(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.act_fn = torch.nn.GELU(approximate="tanh")


def gate_for_up(model: LoadedModel) -> None:
    mlp = layers_of(model)[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.gate_proj(x) * mlp.act_fn(mlp.up_proj(x)))


def cut_off(model: LoadedModel) -> None:
    before(layers_of(model)[1].mlp.down_proj, lambda x: x.clamp(-1.5, 1.5))


def cut_off_before(model: LoadedModel) -> None:
    mlp = layers_of(model)[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x).clamp(max=2)) * mlp.up_proj(x).clamp(-2, 2))


def with_residuals(model: LoadedModel, entering: float, added: float) -> None:
    layer = layers_of(model)[1]

    def forward(x: torch.Tensor, **given: Any) -> torch.Tensor:
        x = entering * x + layer.self_attn(layer.input_layernorm(x), **given)[0]
        return x + added * layer.mlp(layer.post_attention_layernorm(x))

    layer.forward = forward


def without_the_residual(model: LoadedModel) -> None:
    with_residuals(model, 0, 1)


def with_a_larger_sum(model: LoadedModel) -> None:
    with_residuals(model, 1, 1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plant", "component", "cause", "found"),
    [
        (gate_for_up, "activation", "gate_up_swapped", None),
        (cut_off, "activation", "activation_clamped", 1.5),
        (cut_off_before, "activation", "activation_clamped", 2.0),
        (without_the_residual, "attn_residual", "residual_missing", "what enters"),
        (with_a_larger_sum, "residual", "residual_multiplier", 1.5),
    ],
)
def test_the_cause_of_a_wrong_mlp(plant: Plant, component: str, cause: str, found: object, dtype: torch.dtype) -> None:
    _, findings = diagnosed(tiny_loaded("llama", dtype), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [(component, cause, (1,))]
    rough = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert findings[0].found == (pytest.approx(found, rel=rough) if isinstance(found, float) else found)


def test_functions_that_differ_little_are_told_apart_in_fp32() -> None:
    _, (finding,) = diagnosed(tiny_loaded("llama"), another_function)
    assert (finding.cause, finding.found, finding.reference) == ("activation_function", "gelu_pytorch_tanh", "silu")


def in_parallel(model: LoadedModel) -> None:
    layer = layers_of(model)[1]

    def forward(x: torch.Tensor, **given: Any) -> torch.Tensor:
        added = layer.self_attn(layer.input_layernorm(x), **given)[0]
        return x + added + layer.mlp(layer.post_attention_layernorm(x))

    layer.forward = forward


def test_an_mlp_beside_attention_has_a_norm_of_what_enters() -> None:
    _, (finding,) = diagnosed(tiny_loaded("llama"), in_parallel)
    assert (finding.component, finding.cause, finding.layers) == ("mlp_norm", "norm_order", (1,))
    assert finding.found == "what enters the layer"
    assert "as well" not in finding.evidence


def normalised(model: LoadedModel) -> None:
    for layer in layers_of(model):
        layer.mlp.gate.norm_topk_prob = True


def one_expert(model: LoadedModel) -> None:
    for layer in layers_of(model):
        layer.mlp.gate.top_k = 1


def experts_swapped(model: LoadedModel) -> None:
    for parameter in layers_of(model)[1].mlp.experts.parameters():
        parameter.copy_(parameter[[1, 0, 2, 3]].clone())


def expert_lost(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.experts.down_proj[2] = 0


def shares(score: Any, factor: float = 1.0) -> Plant:
    def plant(model: LoadedModel) -> None:
        for layer in layers_of(model):
            router = layer.mlp.gate

            def forward(x: torch.Tensor, router: Any = router) -> tuple[torch.Tensor, ...]:
                logits = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), router.weight)
                top, index = score(logits.float()).topk(router.top_k, -1)
                return logits, (top * factor).to(logits.dtype), index

            router.forward = forward

    return plant


@pytest.mark.parametrize(
    ("plant", "cause", "found"),
    [
        (normalised, "router_normalisation", "divided by their sum"),
        (one_expert, "router_top_k", 1),
        (shares(torch.sigmoid), "router_normalisation", "by a sigmoid"),
        (shares(lambda logits: torch.softmax(logits, -1), 2.5), "router_scaling", 2.5),
        (experts_swapped, "expert_order", "1, 0, 2, 3"),
        (expert_lost, "expert_missing", 2),
    ],
)
def test_the_cause_of_a_wrong_mixture(plant: Plant, cause: str, found: object) -> None:
    _, findings = diagnosed(tiny_loaded("qwen3_moe"), plant)
    assert [(own.component, own.cause, own.found) for own in findings] == [("expert", cause, found)]
