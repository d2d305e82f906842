"""Errors in the attentions of a live transformers model: rotation, what is seen, how it is weighed.

Attentions of transformers call two functions of their own source file: one rotates queries and keys, one attends. Those
are put behind others, which look whether the calling module was changed and else call them as before.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

import torch

from benchmarks.plants.attending import SIGHTS, WEIGHINGS, Attended, Weigh, attend, softmax
from benchmarks.plants.places import Forward, Layers, modules_at, wrap
from benchmarks.plants.rotation import ROTATIONS, TURNS

_ATTRIBUTE = "planted"


@dataclass(frozen=True)
class Planted:
    """What one attention does: changes of what it sees, for queries at position `first` and later, and its weights."""

    sights: tuple[Callable[[Attended], Attended], ...] = ()
    weigh: Weigh = softmax
    first: int = 0


@dataclass(frozen=True)
class Turned:
    """Stands where cosines are handed on, and rotates queries and keys itself."""

    rotate: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def change_sight(model: Any, sight: str, layers: Layers = "all", first_query: int = 0, **parameters: Any) -> None:
    """Attentions see something else (`SIGHTS`), for queries from position `first_query` on: where a prompt is computed
    in chunks, those of later chunks alone read the cache."""
    added = partial(SIGHTS[sight], **parameters)
    _plant(model, layers, lambda old: replace(old, sights=(*old.sights, added), first=first_query))


def change_weighing(model: Any, weighing: str, layers: Layers = "all", **parameters: Any) -> None:
    """Attentions weigh otherwise (`WEIGHINGS`)."""
    weigh = partial(WEIGHINGS[weighing], **parameters)
    _plant(model, layers, lambda old: replace(old, weigh=weigh))


def change_turn(model: Any, turn: str, layers: Layers = "all", **parameters: Any) -> None:
    """Queries and keys are rotated by other angles (`TURNS`)."""
    _give_table(model, layers, partial(TURNS[turn], **parameters))


def change_rotation(model: Any, rotation: str, layers: Layers = "all", **parameters: Any) -> None:
    """Queries and keys are rotated in another way (`ROTATIONS`)."""
    rotate = partial(ROTATIONS[rotation], **parameters)

    def turned(table: Any, positions: torch.Tensor) -> tuple[Turned, None]:
        return Turned(lambda query, key: rotate(query, key, table, positions)), None

    for attention in modules_at(model, "self_attention", layers):
        _put_behind(attention, "apply_rotary_pos_emb", _rotating)
    _give_table(model, layers, turned)


def use_kernel(model: Any, name: str) -> None:
    """Another of transformers' own implementations (`sdpa`, `eager`), which is no error."""
    model.config._attn_implementation = name


def _plant(model: Any, layers: Layers, change: Callable[[Planted], Planted]) -> None:
    for attention in modules_at(model, "self_attention", layers):
        _put_behind(attention, "eager_attention_forward", _attending)
        setattr(attention, _ATTRIBUTE, change(getattr(attention, _ATTRIBUTE, Planted())))


def _give_table(model: Any, layers: Layers, change: Callable[[Any, torch.Tensor], Any]) -> None:
    def around(inner: Forward) -> Forward:
        def forward(*args: Any, position_embeddings: Any, position_ids: torch.Tensor, **kwargs: Any) -> Any:
            given = change(position_embeddings, position_ids)
            return inner(*args, position_embeddings=given, position_ids=position_ids, **kwargs)

        return forward

    for attention in modules_at(model, "self_attention", layers):
        wrap(attention, around)


def _put_behind(attention: Any, name: str, around: Callable[[Forward], Forward]) -> None:
    """Put a function of the attention's source file behind another, once."""
    code = sys.modules[type(attention).__module__]
    if not hasattr(getattr(code, name), _ATTRIBUTE):
        made = around(getattr(code, name))
        setattr(made, _ATTRIBUTE, name)
        setattr(code, name, made)


def _rotating(inner: Forward) -> Forward:
    @wraps(inner)
    def rotate(query: torch.Tensor, key: torch.Tensor, cosines: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(cosines, Turned):
            return cosines.rotate(query, key)
        return inner(query, key, cosines, *args, **kwargs)

    return rotate


def _attending(inner: Forward) -> Forward:
    @wraps(inner)
    def attention(module: Any, *args: Any, **kwargs: Any) -> Any:
        planted: Planted | None = getattr(module, _ATTRIBUTE, None)
        return inner(module, *args, **kwargs) if planted is None else (_attended(planted, *args, **kwargs), None)

    return attention


def _attended(
    planted: Planted,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """What an attention with an error makes, shape (rows, queries, heads, channels)."""
    count = query.shape[2]
    everything = torch.ones((1, 1, count, key.shape[2]), dtype=torch.bool)
    right = Attended(query, key, value, everything if mask is None else mask == 0, scaling, softcap)
    seen = right
    for sight in planted.sights:
        seen = sight(seen)
    made = attend(seen, planted.weigh)
    if planted.first == 0:
        return made
    positions = torch.arange(key.shape[2] - count, key.shape[2])
    return torch.where((positions >= planted.first)[:, None, None], made, attend(right))
