"""Errors of normalisation in a live model are told apart and measured."""

import pytest
import torch

from aftershock.diagnose.points import KINDS
from aftershock.models import LoadedModel
from hand_planted import Plant, after, before, diagnosed, layers_of
from tiny_models import tiny_loaded


def other_eps(model: LoadedModel) -> None:
    for layer in layers_of(model):
        layer.input_layernorm.variance_epsilon = 0.1


def weight_without_one(model: LoadedModel) -> None:
    for layer in layers_of(model):
        norm = layer.pre_feedforward_layernorm
        norm.forward = lambda x, norm=norm: (norm._norm(x.float()) * norm.weight.float()).type_as(x)


def centred(model: LoadedModel) -> None:
    before(model.module.get_submodule("model.norm"), lambda x: x - x.mean(-1, keepdim=True))


def across_heads(model: LoadedModel) -> None:
    for layer in layers_of(model):
        norm = layer.self_attn.q_norm

        def forward(x: torch.Tensor, norm: torch.nn.Module = norm) -> torch.Tensor:
            size = x.float().square().mean((-1, -2), keepdim=True)
            return norm.weight * (x.float() * torch.rsqrt(size + norm.variance_epsilon)).to(x.dtype)

        norm.forward = forward


def no_weight(model: LoadedModel) -> None:
    layers_of(model)[1].post_attention_layernorm.weight.fill_(1)


def weight_of_another(model: LoadedModel) -> None:
    layers_of(model)[1].post_attention_layernorm.weight.copy_(layers_of(model)[1].input_layernorm.weight)


def wrong_word(model: LoadedModel) -> None:
    layers_of(model)[1].input_layernorm.weight[5] *= 3


def no_qk_norm(model: LoadedModel) -> None:
    for layer in layers_of(model):
        layer.self_attn.q_norm.forward = lambda x: x
        layer.self_attn.k_norm.forward = lambda x: x


def no_post_norm(model: LoadedModel) -> None:
    layers_of(model)[0].post_attention_layernorm.forward = lambda x: x


def of_the_attention_alone(model: LoadedModel) -> None:
    """The norm before the MLP gets what attention adds, without the residual."""
    layer = layers_of(model)[1]
    added: list[torch.Tensor] = []
    after(layer.self_attn.o_proj, lambda x: added.append(x) or x)
    before(layer.post_attention_layernorm, lambda _: added[-1])


def of_the_sum(model: LoadedModel) -> None:
    """The norm after the MLP is of the sum with the residual."""
    layer = layers_of(model)[1]
    entering: list[torch.Tensor] = []
    before(layer.pre_feedforward_layernorm, lambda x: entering.append(x) or x)
    before(layer.post_feedforward_layernorm, lambda x: x + entering[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "plant", "component", "cause", "found", "layers"),
    [
        ("llama", other_eps, "attn_norm", "norm_eps", 0.1, (0, 1)),
        ("gemma2", weight_without_one, "mlp_norm", "norm_offset", "w", (0, 1)),
        ("llama", centred, "final_norm", "norm_centred", "LayerNorm", ()),
        ("qwen3", across_heads, "q_norm", "norm_scope", 32, (0, 1)),
        ("llama", no_weight, "mlp_norm", "norm_weight", "none", (1,)),
        ("llama", weight_of_another, "mlp_norm", "norm_weight", "that of attn_norm", (1,)),
        ("llama", wrong_word, "attn_norm", "norm_weight", "1 of 32 words differ", (1,)),
        ("qwen3", no_qk_norm, "q_norm", "qk_norm_missing", None, (0, 1)),
        ("gemma2", no_post_norm, "post_attn_norm", "norm_order", "missing", (0,)),
        ("gemma2", of_the_sum, "post_mlp_norm", "norm_order", "the sum with the residual", (1,)),
        ("llama", of_the_attention_alone, "mlp_norm", "norm_order", "o, without the residual", (1,)),
    ],
)
def test_the_cause_of_a_wrong_norm(
    family: str,
    plant: Plant,
    component: str,
    cause: str,
    found: float | str | None,
    layers: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    _, findings = diagnosed(tiny_loaded(family, dtype), plant)
    assert [(own.component, own.cause, own.found, own.layers) for own in findings] == [
        (component, cause, found, layers)
    ]
    assert findings[0].before is not None
    assert findings[0].after is not None
    assert findings[0].before > 1.5 > findings[0].after


def test_a_norm_that_is_hidden_is_found_behind_what_it_feeds() -> None:
    shown = [kind for kind in KINDS if kind != "attn_norm"]
    judgement, findings = diagnosed(tiny_loaded("llama"), other_eps, kinds=shown)
    assert {own.point.kind for own in judgement.wrong} == {"q", "k", "v"}
    assert [(own.component, own.cause, own.found) for own in findings] == [("attn_norm", "norm_eps", 0.1)]
