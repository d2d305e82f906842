"""Errors of attention in a live model: scale, cap, what a token sees, which keys it reads and as what."""

from functools import partial
from typing import Any

import pytest
import torch

from aftershock.models import LoadedModel
from hand_planted import Attend, attended, attending, diagnosed, layers_of, masked
from tiny_models import tiny_loaded


def scaled(model: LoadedModel) -> None:
    layers_of(model)[1].self_attn.scaling *= 1.1


def test_a_scale_is_measured_and_what_it_can_t_be_told_from_is_named() -> None:
    _, (finding,) = diagnosed(tiny_loaded("llama"), scaled)
    assert (finding.component, finding.cause, finding.layers) == ("attention", "attention_scale", (1,))
    assert finding.found == pytest.approx(1.1 * 8**-0.5, rel=1e-5)
    assert finding.reference == pytest.approx(8**-0.5, rel=1e-5)
    assert finding.runner_up == "kv_scale"
    assert finding.evidence.endswith("kv_scale explains it as well")


@pytest.mark.parametrize(("cap", "found"), [(None, "none"), (10.0, 10)])
def test_a_cap_that_is_missing_or_another(cap: float | None, found: object) -> None:
    def plant(model: LoadedModel) -> None:
        for layer in layers_of(model):
            layer.self_attn.attn_logit_softcapping = cap
        model.module.set_attn_implementation("eager")

    _, (finding,) = diagnosed(tiny_loaded("gemma2"), plant)
    assert (finding.cause, finding.found, finding.reference) == ("attention_softcap", found, 50)


def capped(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    scores = 5 * torch.tanh(q @ k.transpose(-1, -2) * scale / 5)
    return torch.softmax(scores + mask, -1).to(q.dtype) @ v


def with_window(size: int | None) -> Attend:
    return lambda _, q, k, v, mask, scale: attended(q, k, v, masked(q.shape[2], size), scale)


def seeing_everything(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    return attended(q, k, v, torch.zeros_like(mask), scale)


def reading_by_turns(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    return attended(q, k[:, [0, 2, 0, 2]], v[:, [0, 2, 0, 2]], mask, scale)


def reading_the_first(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    return attended(q, k[:, [0, 0, 2, 0]], v[:, [0, 0, 2, 0]], mask, scale)


def with_larger_values(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    return attended(q, k, v * 1.25, mask, scale)


def with_larger_rows(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    return attended(q, k * 1.25, v * 1.5, mask, scale)


def with_a_block_of_earlier_rows(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    found = attended(q, k, v, mask, scale)
    if q.shape[2] > 48:
        k, v = k.clone(), v.clone()
        k[:, :, 24:48], v[:, :, 24:48] = k[:, :, :24], v[:, :, :24]
        found[:, :, 48:] = attended(q, k, v, mask, scale)[:, :, 48:]
    return found


def without_the_last_heads(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    found = attended(q, k, v, mask, scale)
    found[:, 2:] = 0
    return found


def with_coarse_rows(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    k, v = (own.to(torch.float8_e4m3fn).to(own.dtype) for own in (k, v))
    return attended(q, k, v, mask, scale)


def with_sinks(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    sinks = torch.tensor([0.5, -0.5, 1.0, 0.0])[None, :, None, None].expand(q.shape[0], -1, q.shape[2], 1)
    scores = torch.cat(((q @ k.transpose(-1, -2) * scale + mask).float(), sinks), -1)
    return torch.softmax(scores, -1)[..., :-1].to(q.dtype) @ v


def with_rows_unread(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    mask = mask.clone()
    mask[40:, 8:16] = -torch.inf
    return attended(q, k, v, mask, scale)


def with_a_row_overwritten(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    found = attended(q, k, v, mask, scale)
    if q.shape[2] > 41:
        k, v = k.clone(), v.clone()
        k[:, :, 5], v[:, :, 5] = k[:, :, 40], v[:, :, 40]
        found[:, :, 41:] = attended(q, k, v, mask, scale)[:, :, 41:]
    return found


def with_rows_of_others(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    if len(q) == 2:
        k, v = k.clone(), v.clone()
        k[1, :, 16:24], v[1, :, 16:24] = k[0, :, 16:24], v[0, :, 16:24]
    return attended(q, k, v, mask, scale)


def with_empty_rows(_: int, q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    k, v = k.clone(), v.clone()
    k[:, :, 2:4], v[:, :, 2:4] = 0, 0
    return attended(q, k, v, mask, scale)


@pytest.mark.parametrize(
    ("family", "attend", "cause", "found"),
    [
        ("llama", capped, "attention_softcap", 5),
        ("mistral", with_window(17), "window_size", 17),
        ("mistral", with_window(None), "window_size", "none"),
        ("gemma3", with_window(16), "window_layers", 16),
        ("gemma3", with_window(None), "window_layers", "none"),
        ("llama", seeing_everything, "causal_mask", "later tokens too"),
        ("llama", reading_by_turns, "kv_head_mapping", "0, 1, 0, 1"),
        ("llama", reading_the_first, "kv_head_mapping", "0, 0, 1, 0"),
        ("llama", with_larger_values, "kv_scale", 1.25),
        ("llama", with_larger_rows, "kv_scale", "1.25 and 1.5"),
        (
            "llama",
            with_a_block_of_earlier_rows,
            "kv_stale",
            "tokens 24-47 of request 0, tokens 24-47 of request 2 read as tokens 0-23 of request 0, tokens 0-23 of "
            "request 2",
        ),
        ("llama", with_coarse_rows, "kv_precision", "float8_e4m3"),
        ("llama", without_the_last_heads, "heads_missing", "2, 3"),
        ("llama", with_sinks, "attention_sink", "0.5, -0.5, 1.0, 0.0"),
        ("llama", with_rows_unread, "kv_missing", "tokens 8-15 of request 0, tokens 8-15 of request 2 not read"),
        ("llama", with_a_row_overwritten, "kv_overwritten", ...),
        (
            "llama",
            with_rows_of_others,
            "kv_stale",
            "tokens 16-23 of request 2 read as tokens 16-23 of request 0",
        ),
        ("llama", with_empty_rows, "kv_stale", ...),
    ],
)
def test_the_cause_of_wrong_attention(
    family: str, attend: Attend, cause: str, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"sliding_window": 16} if family == "mistral" else {}
    plant = partial(attending, monkeypatch=monkeypatch, attend=attend)
    _, findings = diagnosed(tiny_loaded(family, **settings), plant)
    assert [(own.component, own.cause) for own in findings] == [("attention", cause)]
    assert found in (findings[0].found, ...)


@pytest.mark.parametrize(
    ("attend", "cause"),
    [
        (reading_by_turns, "kv_head_mapping"),
        (with_rows_unread, "kv_missing"),
        (with_rows_of_others, "kv_stale"),
    ],
)
def test_rounding_to_16_bits_does_not_hide_it(attend: Attend, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = partial(attending, monkeypatch=monkeypatch, attend=attend)
    _, findings = diagnosed(tiny_loaded("llama", torch.bfloat16), plant)
    assert [(own.component, own.cause) for own in findings] == [("attention", cause)]
