"""Errors of a shared expert and of the router beside it, in a live Qwen 2 MoE."""

from functools import partial
from typing import Any

import pytest
import torch

from aftershock.capture import record
from aftershock.diagnose import diagnose
from aftershock.models import LoadedModel
from hand_planted import PROMPTS, Plant, after, diagnosed, layers_of
from tiny_models import tiny_loaded


def shared(model: LoadedModel, times: float) -> None:
    after(layers_of(model)[1].mlp.shared_expert, lambda x: times * x)


def without_its_gate(model: LoadedModel) -> None:
    mlp: Any = layers_of(model)[1].mlp

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.view(-1, x.shape[-1])
        beside = mlp.shared_expert(rows)
        _, shares, chosen = mlp.gate(rows)
        routed = mlp.experts(rows, chosen, shares)
        mlp.shared_expert_gate(rows)
        return (routed + beside).view(x.shape)

    mlp.forward = forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (partial(shared, times=0), "left out"),
        (partial(shared, times=2), "added twice"),
        (without_its_gate, "without its gate"),
    ],
)
def test_the_cause_of_a_wrong_shared_expert(plant: Plant, found: str, dtype: torch.dtype) -> None:
    healthy, broken = (tiny_loaded("qwen2_moe", dtype) for _ in range(2))
    plant(broken)
    for findings in (
        diagnosed(tiny_loaded("qwen2_moe", dtype), plant)[1],
        diagnose(healthy, record(broken, PROMPTS)).findings,
    ):
        assert [(own.component, own.cause, own.found) for own in findings] == [("expert", "shared_expert", found)]
        assert findings[0].layers == (1,)


def test_shared_experts_that_are_all_left_out_are_one_finding() -> None:
    def plant(model: LoadedModel) -> None:
        for layer in layers_of(model):
            after(layer.mlp.shared_expert, torch.zeros_like)

    _, findings = diagnosed(tiny_loaded("qwen2_moe"), plant)
    assert [(own.cause, own.found, own.layers) for own in findings] == [("shared_expert", "left out", (0, 1))]


def normalised(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.gate.norm_topk_prob = True


def softmax_again(model: LoadedModel) -> None:
    router: Any = layers_of(model)[1].mlp.gate

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), router.weight)
        top, index = torch.softmax(logits.float(), -1).topk(router.top_k, -1)
        return logits, torch.softmax(top, -1).to(logits.dtype), index

    router.forward = forward


def weight_of_the_gate(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.shared_expert_gate.weight.mul_(1.5)


def weight_of_the_shared_expert(model: LoadedModel) -> None:
    layers_of(model)[1].mlp.shared_expert.down_proj.weight.mul_(1.5)


def experts_swapped(model: LoadedModel) -> None:
    for parameter in layers_of(model)[1].mlp.experts.parameters():
        parameter.copy_(parameter[[1, 0, 2, 3]].clone())


def norm_before(model: LoadedModel) -> None:
    layers_of(model)[1].post_attention_layernorm.weight.fill_(1)


def no_bias(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.v_proj.bias.zero_()


def halved(model: LoadedModel) -> None:
    after(layers_of(model)[1].mlp, lambda x: x / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plant", "component", "cause"),
    [
        (normalised, "expert", "router_normalisation"),
        (softmax_again, "expert", "router_softmax_order"),
        (weight_of_the_gate, "shared_router", "weight_scale"),
        (weight_of_the_shared_expert, "down", "weight_scale"),
        (experts_swapped, "expert", "expert_order"),
        (norm_before, "mlp_norm", "norm_weight"),
        (no_bias, "v", "bias_missing"),
        (halved, "residual", "residual_multiplier"),
    ],
)
def test_the_cause_beside_a_shared_expert(plant: Plant, component: str, cause: str, dtype: torch.dtype) -> None:
    _, findings = diagnosed(tiny_loaded("qwen2_moe", dtype), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [(component, cause, (1,))]
