"""Causes are told only where they make everything come out right; what can't be told is said to be unknown."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from aftershock.diagnose.explaining import explain
from aftershock.diagnose.hypotheses import HYPOTHESES
from aftershock.diagnose.judging import judge
from aftershock.diagnose.points import KINDS, Point
from aftershock.diagnose.replay import deviations
from aftershock.models import LoadedModel
from aftershock.numerics import generator
from hand_made import replica_of, shown_by
from hand_planted import PROMPTS, Plant, after, attended, attending, before, diagnosed, layers_of
from tiny_models import tiny_loaded


def test_a_healthy_model_has_no_findings() -> None:
    judgement, findings = diagnosed(tiny_loaded("qwen3", torch.bfloat16), lambda _: None)
    assert judgement.wrong == ()
    assert findings == ()


def rolled(model: LoadedModel) -> None:
    before(layers_of(model)[1].mlp.down_proj, lambda x: x.roll(1, -1))


def bent(model: LoadedModel) -> None:
    after(layers_of(model)[1].self_attn.o_proj, torch.sin)


def noisy(model: LoadedModel) -> None:
    draws = generator(0, 0, "noise")
    after(
        layers_of(model)[0].self_attn.q_proj,
        lambda x: x + 0.3 * torch.from_numpy(draws.standard_normal(tuple(x.shape))).to(x.dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("plant", "component", "layer"), [(rolled, "activation", 1), (bent, "o", 1), (noisy, "q", 0)])
def test_what_the_library_does_not_hold_is_unknown_but_has_its_place(
    plant: Plant, component: str, layer: int, dtype: torch.dtype
) -> None:
    _, (finding,) = diagnosed(tiny_loaded("llama", dtype), plant)
    assert (finding.component, finding.layers, finding.cause) == (component, (layer,), "unknown")
    assert finding.after is None
    assert finding.runner_up is not None
    assert "no known cause explains" in finding.evidence


def test_attention_that_nothing_explains_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        return attended(q, k, v, mask, scale) + 0.1 * q.sin()

    _, findings = diagnosed(tiny_loaded("llama"), partial(attending, monkeypatch=monkeypatch, attend=attend))
    assert [(own.component, own.layers, own.cause) for own in findings] == [("attention", (0, 1), "unknown")]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_wrong_and_nothing_breaks(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(layer: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        found = attended(q, k, v, mask, scale)
        found[:, 1, 4:, 2] = value
        return found

    judgement, findings = diagnosed(tiny_loaded("llama"), partial(attending, monkeypatch=monkeypatch, attend=attend))
    assert judgement.onset == Point("attention", 0)
    assert findings[0].cause == "not_finite"
    assert "token 4 of request 0 the first" in findings[0].evidence


def test_an_error_at_some_tokens_is_explained_there() -> None:
    def plant(model: LoadedModel) -> None:
        def late(x: torch.Tensor) -> torch.Tensor:
            return torch.cat((x[:, :30], 1.5 * x[:, 30:]), 1)

        after(layers_of(model)[0].mlp.down_proj, late)

    judgement, (finding,) = diagnosed(tiny_loaded("llama"), plant)
    assert judgement.wrong[0].positions.pattern == "from"
    assert (finding.component, finding.cause, finding.runner_up) == ("down", "unknown", "weight_scale")
    assert "from position 30 on" in finding.evidence
    assert finding.evidence.endswith("those tokens are as with weight_scale, 1.5, but the others are right")


def test_what_is_not_finite_is_said_where_it_begins() -> None:
    def plant(model: LoadedModel) -> None:
        def spoilt(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[0, 3:5, 7] = torch.nan
            return x

        after(layers_of(model)[1].mlp.up_proj, spoilt)

    _, findings = diagnosed(tiny_loaded("llama"), plant)
    assert [(own.component, own.cause) for own in findings][:1] == [("up", "not_finite")]
    assert "token 3 of request 0 the first, in 1 of" in findings[0].evidence


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda words: words.to(torch.float8_e4m3fn).float(), "float8_e4m3"),
        (lambda words: (words / _steps(words)).round() * _steps(words), "int8, a scale a row"),
    ],
)
def test_words_of_a_lower_precision_are_no_rounding_of_sums(edit, found) -> None:
    def plant(model: LoadedModel) -> None:
        weight = layers_of(model)[1].mlp.down_proj.weight
        weight.copy_(edit(weight))

    _, (finding,) = diagnosed(tiny_loaded("llama"), plant)
    assert (finding.component, finding.cause, finding.found) == ("down", "weight_precision", found)


def _steps(words: torch.Tensor) -> torch.Tensor:
    return words.abs().amax(-1, keepdim=True) / 127


def test_a_small_change_of_words_is_no_rounding_of_sums() -> None:
    def plant(model: LoadedModel) -> None:
        weight = layers_of(model)[1].mlp.down_proj.weight
        sides = [generator(0, side, "words").standard_normal((size, 2)) for side, size in enumerate(weight.shape)]
        weight.add_(1e-3 * torch.from_numpy(sides[0] @ sides[1].T).to(weight))

    model = tiny_loaded("llama", hidden_size=256, intermediate_size=320, head_dim=64)
    _, (finding,) = diagnosed(model, plant)
    assert (finding.component, finding.cause, finding.runner_up) == ("down", "unknown", "weight_zero_point")


def test_each_layer_may_have_a_parameter_of_its_own() -> None:
    def plant(model: LoadedModel) -> None:
        for layer, factor in zip(layers_of(model), (2, 3), strict=True):
            layer.self_attn.v_proj.weight.mul_(factor)

    _, findings = diagnosed(tiny_loaded("llama"), plant)
    assert [(own.component, own.cause, own.found, own.layers) for own in findings] == [
        ("v", "weight_scale", 2, (0,)),
        ("v", "weight_scale", 3, (1,)),
    ]


def test_errors_of_one_kind_in_components_apart_are_not_one() -> None:
    def plant(model: LoadedModel) -> None:
        layers_of(model)[0].self_attn.q_proj.weight.mul_(2)
        layers_of(model)[1].mlp.down_proj.weight.mul_(2)
        model.module.get_submodule("model.norm").weight.fill_(1)
        layers_of(model)[0].input_layernorm.weight.fill_(1)

    _, findings = diagnosed(tiny_loaded("llama"), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [
        ("attn_norm", "norm_weight", (0,)),
        ("q", "weight_scale", (0,)),
        ("down", "weight_scale", (1,)),
        ("final_norm", "norm_weight", ()),
    ]


def test_a_wrong_row_in_a_layer_and_one_after_the_layers_are_both_found() -> None:
    def plant(model: LoadedModel) -> None:
        layers_of(model)[0].self_attn.q_proj.weight[3] *= -1
        model.module.get_submodule("lm_head").weight[3] *= -1

    _, findings = diagnosed(tiny_loaded("llama"), plant)
    assert [(own.component, own.layers) for own in findings] == [("q", (0,)), ("logits", ())]


def test_a_hidden_computation_is_blamed_only_where_all_that_depends_on_it_agrees() -> None:
    """With the sum after attention hidden, what the norm gets could be wrong: not where the layer's output is right."""

    def plant(model: LoadedModel) -> None:
        layer = layers_of(model)[1]
        added: list[torch.Tensor] = []
        after(layer.self_attn.o_proj, lambda x: added.append(x) or x)
        before(layer.post_attention_layernorm, lambda _: added[-1])

    _, (finding,) = diagnosed(tiny_loaded("llama"), plant)
    assert (finding.component, finding.cause) == ("mlp_norm", "norm_order")


def test_what_is_wrong_after_the_prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        coarse = v.to(torch.float8_e4m3fn).to(v.dtype)
        found = attended(q, k.to(torch.float8_e4m3fn).to(k.dtype), coarse, mask, scale)
        return torch.cat((attended(q, k, v, mask, scale)[:, :, :50], found[:, :, 50:]), 2)

    model = tiny_loaded("llama")
    replica = replica_of(model)
    attending(model, monkeypatch, attend)
    tokens, target = shown_by(model, PROMPTS)
    tokens = replace(tokens, prompts=tuple(min(length, 50) for length in tokens.lengths))
    judgement = judge(deviations(replica, tokens, target), replica, tokens, target)
    assert judgement.wrong[0].positions.pattern == "decode"
    (finding,) = explain(replica, tokens, target, judgement)
    assert (finding.cause, finding.found) == ("kv_precision", "float8_e4m3")
    assert finding.parameter == "keys and values after the prompts"


def test_a_cause_stays_what_it_is_where_its_tokens_are_shown_in_part() -> None:
    model = tiny_loaded("llama")
    replica = replica_of(model)
    layers_of(model)[1].mlp.act_fn = torch.nn.ReLU()
    tokens, target = shown_by(model, PROMPTS)
    some = {
        point: own.at(torch.arange(0, len(tokens.ids), 3)) for point, own in target.items() if point.kind == "logits"
    }
    shown = {**target, **some}
    judgement = judge(deviations(replica, tokens, shown), replica, tokens, shown)
    (finding,) = explain(replica, tokens, shown, judgement)
    assert (finding.cause, finding.found) == ("activation_function", "relu")


def test_the_library_knows_the_kinds_of_points() -> None:
    assert {kind for own in HYPOTHESES for kind in own.kinds} <= set(KINDS)
    assert len(HYPOTHESES) >= 40
    assert len({own.candidates for own in HYPOTHESES}) == len(HYPOTHESES)
