"""Errors of the embedding and of the logits in a live model, and values rounded more than the model says."""

from typing import Any

import pytest
import torch

from aftershock.models import LoadedModel
from hand_planted import Plant, after, before, diagnosed, layers_of
from tiny_models import tiny_loaded


def unscaled(model: LoadedModel) -> None:
    model.module.get_submodule("model.embed_tokens").embed_scale.fill_(1)


def row_of_another(model: LoadedModel) -> None:
    weight = model.module.get_submodule("model.embed_tokens").weight
    weight[22] = weight[23]


def with_positions(model: LoadedModel) -> None:
    table = torch.linspace(-1, 1, 64 * 32).view(64, 32).sin()
    after(model.module.get_submodule("model.embed_tokens"), lambda x: x + table[: x.shape[1]].to(x.dtype))


def uncapped(model: LoadedModel) -> None:
    model.module.config.final_logit_softcapping = None


def halved(model: LoadedModel) -> None:
    after(model.module.get_submodule("lm_head"), lambda logits: logits / 2)


def tied(model: LoadedModel) -> None:
    head, embedding = (model.module.get_submodule(name) for name in ("lm_head", "model.embed_tokens"))
    head.weight = torch.nn.Parameter(embedding.weight.clone(), requires_grad=False)


def biased(model: LoadedModel) -> None:
    after(model.module.get_submodule("lm_head"), lambda logits: logits + torch.linspace(-1, 1, 100).to(logits.dtype))


UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "plant", "component", "cause", "found", "settings"),
    [
        ("gemma3", unscaled, "embedding", "embedding_multiplier", 1, {}),
        ("llama", row_of_another, "embedding", "weight_rows_wrong", "tokens 22: rows of other tokens", UNTIED),
        ("llama", with_positions, "embedding", "position_embedding", ..., UNTIED),
        ("gemma2", uncapped, "logits", "logit_softcap", "none", {}),
        ("llama", halved, "logits", "logit_multiplier", 0.5, UNTIED),
        ("llama", tied, "logits", "lm_head_tying", "the embedding's words", UNTIED),
        ("llama", biased, "logits", "logit_bias", ..., UNTIED),
    ],
)
def test_the_cause_of_a_wrong_end(
    family: str, plant: Plant, component: str, cause: str, found: object, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    _, findings = diagnosed(tiny_loaded(family, dtype, **settings), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [(component, cause, ())]
    assert found in (findings[0].found, ...)


def coarse_values(model: LoadedModel) -> None:
    after(layers_of(model)[1].self_attn.v_proj, lambda x: x.to(torch.float8_e4m3fn).to(x.dtype))


def coarse_function(model: LoadedModel) -> None:
    before(layers_of(model)[0].mlp.act_fn, lambda x: x.half().float())
    after(layers_of(model)[0].mlp.act_fn, lambda x: x.half().float())


def coarse_norm(model: LoadedModel) -> None:
    for layer in layers_of(model):
        norm = layer.post_attention_layernorm

        def forward(x: torch.Tensor, norm: Any = norm) -> torch.Tensor:
            short = x.bfloat16()
            size = short.square().mean(-1, keepdim=True)
            return (norm.weight.bfloat16() * (short * torch.rsqrt(size + norm.variance_epsilon))).to(x.dtype)

        norm.forward = forward


def coarse_sums(model: LoadedModel) -> None:
    down = layers_of(model)[0].mlp.down_proj

    def forward(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(*x.shape[:-1], len(down.weight), dtype=torch.bfloat16)
        for some, words in zip(x.split(8, -1), down.weight.split(8, -1), strict=True):
            total += (some @ words.T).bfloat16()
        return total.to(x.dtype)

    down.forward = forward


@pytest.mark.parametrize(
    ("plant", "component", "cause", "found"),
    [
        (coarse_values, "v", "output_dtype", "float8_e4m3"),
        (coarse_function, "activation", "output_dtype", "float16"),
        (coarse_norm, "mlp_norm", "accumulation_dtype", "bfloat16"),
        (coarse_sums, "down", "accumulation_dtype", "bfloat16"),
    ],
)
def test_values_rounded_more_than_the_model_says(plant: Plant, component: str, cause: str, found: str) -> None:
    _, findings = diagnosed(tiny_loaded("llama"), plant)
    assert [(own.component, own.cause, own.found) for own in findings] == [(component, cause, found)]
