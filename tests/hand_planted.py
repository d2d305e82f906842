"""Errors put into a live transformers model by hand: attributes, hooks, and functions of its modelling file."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from aftershock.diagnose.diagnosis import Finding
from aftershock.diagnose.explaining import explain
from aftershock.diagnose.judging import Judgement, judge
from aftershock.diagnose.points import KINDS
from aftershock.diagnose.replay import deviations
from aftershock.models import LoadedModel
from hand_made import replica_of, shown_by

PROMPTS: tuple[tuple[int, ...], ...] = (
    tuple(range(5, 65)),
    tuple(range(20, 28)),
    tuple((7 * token) % 90 + 5 for token in range(60)),
    (9, 8, 7),
)


Plant = Callable[[LoadedModel], None]
"""Puts an error into a model."""


def diagnosed(
    model: LoadedModel,
    plant: Plant,
    kinds: Sequence[str] = KINDS,
    prompts: Sequence[Sequence[int]] = PROMPTS,
) -> tuple[Judgement, tuple[Finding, ...]]:
    """What is found in a model once an error is planted, of points of some kinds; the replica is that of the model
    before."""
    own = replica_of(model)
    replica = replace(own, weights={part: tensor.clone() for part, tensor in own.weights.items()})
    plant(model)
    tokens, everything = shown_by(model, prompts)
    target = {point: shown for point, shown in everything.items() if point.kind in kinds}
    judgement = judge(deviations(replica, tokens, target), replica, tokens, target)
    return judgement, explain(replica, tokens, target, judgement)


def layers_of(model: LoadedModel) -> Any:
    """The layers of a model."""
    return next(part for name, part in model.module.named_modules() if name.endswith((".layers", ".h")))


def modelling(model: LoadedModel) -> ModuleType:
    """The file that a model's classes are of."""
    return sys.modules[type(model.module).__module__]


def after(module: torch.nn.Module, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change what a module returns."""
    module.register_forward_hook(lambda _, __, output: edit(output))


def before(module: torch.nn.Module, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change what a module is given."""
    module.register_forward_pre_hook(lambda _, given: (edit(given[0]), *given[1:]))


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""Attention of a layer, by its number: of queries, keys and values, shape (requests, heads, tokens, channels), keys and
values repeated for all heads, with a mask of 0 and -inf, shape (tokens, tokens), and a scale."""


def attending(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, attend: Attend) -> None:
    """Replace attention."""

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (own.repeat_interleave(groups, 1) for own in (key, value))
        own = masked(query.shape[2], getattr(module, "sliding_window", None))
        found = attend(module.layer_idx, query, key, value, own, scaling)
        return found.transpose(1, 2).contiguous(), None

    model.module.set_attn_implementation("eager")
    monkeypatch.setattr(modelling(model), "eager_attention_forward", forward)


def masked(length: int, window: int | None) -> torch.Tensor:
    """0 where a token sees another one, -inf elsewhere: shape (length, length)."""
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        seen &= ~torch.ones(length, length, dtype=torch.bool).tril(-window)
    return torch.zeros(length, length).masked_fill(~seen, -torch.inf)


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention as it should be."""
    scores = query @ key.transpose(-1, -2) * scale + mask.to(query.dtype)
    return torch.softmax(scores.float(), -1).to(query.dtype) @ value
