"""Errors of rotary embeddings in a live model, behind the attention that hides them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aftershock.models import LoadedModel
from hand_planted import Plant, diagnosed, modelling
from tiny_models import tiny_loaded

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def turning_at(theta: float, factor: float = 1.0) -> Plant:
    def plant(model: LoadedModel) -> None:
        frequencies = theta ** -(torch.arange(0, 8, 2) / 8) / factor
        model.module.get_submodule("model.rotary_emb").inv_freq.copy_(frequencies)

    return plant


def coarse_frequencies(model: LoadedModel) -> None:
    frequencies = model.module.get_submodule("model.rotary_emb").inv_freq
    frequencies.copy_(frequencies.bfloat16().float())


def at_positions(moved: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    def given(_: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        positions = named["position_ids"] if "position_ids" in named else args[1]
        return args[:1], {**named, "position_ids": moved(positions)}

    def plant(model: LoadedModel) -> None:
        model.module.get_submodule("model.rotary_emb").register_forward_pre_hook(given, with_kwargs=True)

    return plant


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("plant", "cause", "found", "settings"),
    [
        (turning_at(5e5), "rope_theta", 5e5, {}),
        (turning_at(1e4, factor=4), "rope_scaling", 4, {}),
        (turning_at(1e4), "rope_scaling", "none", {"rope_parameters": LLAMA3}),
        (at_positions(lambda own: own + 3 * (own >= 20)), "position_offset", 3, {}),
        (at_positions(lambda own: own - 32 * (own >= 32)), "position_reset", ..., {}),
        (at_positions(lambda own: own % 16), "position_reset", "start again every 16 tokens", {}),
    ],
)
def test_the_cause_of_a_wrong_rotation(
    plant: Plant, cause: str, found: object, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    _, findings = diagnosed(tiny_loaded("llama", dtype, **settings), plant)
    assert [(own.component, own.cause, own.layers) for own in findings] == [("q_rope", cause, (0, 1))]
    assert found in (findings[0].found, ...)


def test_coarse_frequencies_are_seen_in_fp32() -> None:
    _, (finding,) = diagnosed(tiny_loaded("llama"), coarse_frequencies)
    assert (finding.cause, finding.parameter, finding.found) == ("position_precision", "frequencies", "bfloat16")


def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


def halved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-second, first), -1) * sin


def of_half_the_channels(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = (own[..., :2].repeat(1, 1, 1, 2) for own in (cos, sin))
    return torch.cat((halved(x[..., :4], cos, sin), x[..., 4:]), -1)


@pytest.mark.parametrize(
    ("turned", "cause", "found"),
    [
        (interleaved, "rope_layout", "interleaved"),
        (lambda x, cos, sin: halved(x, cos, -sin), "rope_layout", "backwards"),
        (of_half_the_channels, "rope_partial", 4),
        (lambda x, _, __: x, "rope_missing", "q and k"),
    ],
)
def test_the_cause_of_another_turn(
    turned: Callable[..., torch.Tensor], cause: str, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turn(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: Any) -> Any:
        return turned(q, cos[:, None], sin[:, None]), turned(k, cos[:, None], sin[:, None])

    def plant(model: LoadedModel) -> None:
        monkeypatch.setattr(modelling(model), "apply_rotary_pos_emb", turn)

    _, findings = diagnosed(tiny_loaded("llama"), plant)
    assert [(own.component, own.cause, own.found) for own in findings] == [("q_rope", cause, found)]


def test_queries_that_are_not_turned_are_told_from_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: Any) -> Any:
        return q, halved(k, cos[:, None], sin[:, None])

    def plant(model: LoadedModel) -> None:
        monkeypatch.setattr(modelling(model), "apply_rotary_pos_emb", turn)

    _, (finding,) = diagnosed(tiny_loaded("llama"), plant)
    assert (finding.cause, finding.found) == ("rope_missing", "q")
