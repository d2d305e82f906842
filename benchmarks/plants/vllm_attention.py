"""Errors in the attentions of a live vLLM model: what they are told, what they write into the cache, what it holds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.plants.attending import SIGHTS, Attended
from benchmarks.plants.places import Forward, Layers, modules_at, replace_forward

_SETTINGS: dict[str, Callable[..., dict[str, Any]]] = {
    "rescale": lambda attention, factor: {"scale": attention.impl.scale * factor},
    "cap": lambda attention, softcap: {"logits_soft_cap": softcap},
    "uncap": lambda attention: {"logits_soft_cap": 0.0},
}
_WEIGHINGS: dict[str, Callable[..., dict[str, Any]]] = {
    "sink": lambda attention, logit: {"sinks": torch.full((attention.num_heads,), logit)},
    "biased_by_distance": lambda attention, slope: {"alibi_slopes": torch.full((attention.num_heads,), slope)},
}
"""Attributes of the attention's implementation, by the sight or weighing that they stand for."""

_WRITTEN = ("scale_cache", "round_cache", "values_of_next_head", "first_head_for_all")
"""Sights that are what is written into the cache, token by token."""


def change_sight(model: Any, sight: str, layers: Layers = "all", **parameters: Any) -> None:
    """Attentions see something else. `hold_other` moves whole blocks of 32 rows; `window` and `no_window` are set
    before the model is built (`set_windows`)."""
    for module in modules_at(model, "self_attention", layers):
        attention = module.attn
        if sight in _SETTINGS:
            for name, value in _SETTINGS[sight](attention, **parameters).items():
                setattr(attention.impl, name, value)
        elif sight in _WRITTEN:
            replace_forward(
                attention, partial(_written, attention, attention.forward, partial(SIGHTS[sight], **parameters))
            )
        elif sight == "tile_heads":
            replace_forward(attention, partial(_tiled, attention, attention.forward))
        elif sight == "hold_other":
            replace_forward(attention, partial(_reading_others, attention, attention.forward, parameters))
        elif sight not in ("window", "no_window"):
            raise ValueError(f"there is no {sight} in vLLM")


def change_weighing(model: Any, weighing: str, layers: Layers = "all", **parameters: Any) -> None:
    """Attentions weigh otherwise, as far as vLLM's own kernel can."""
    for module in modules_at(model, "self_attention", layers):
        for name, value in _WEIGHINGS[weighing](module.attn, **parameters).items():
            setattr(module.attn.impl, name, value)


def set_windows(sizes: dict[int, int | None]) -> None:
    """Attentions of these layers are built with these windows (None: none), whatever the configuration says."""
    from vllm.model_executor.layers.attention import Attention

    build = Attention.__init__

    def built(self: Any, *args: Any, prefix: str = "", **kwargs: Any) -> None:
        numbers = [int(part) for part in prefix.split(".") if part.isdigit()]
        if numbers and numbers[0] in sizes:
            kwargs["per_layer_sliding_window"] = sizes[numbers[0]]
        build(self, *args, prefix=prefix, **kwargs)

    replace_method(Attention, "__init__", built)


def replace_method(kind: type, name: str, method: Callable[..., Any]) -> None:
    """Give a class another method."""
    setattr(kind, name, method)


def _written(
    attention: Any,
    inner: Forward,
    sight: Callable[[Attended], Attended],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    **kwargs: Any,
) -> Any:
    shape = (len(query), attention.num_kv_heads, attention.head_size)
    heads = [states.reshape(shape).transpose(0, 1)[None] for states in (key, value)]
    nothing = torch.empty(1, attention.num_heads, 0, attention.head_size)
    seen = sight(Attended(nothing, heads[0], heads[1], torch.empty(0), 1.0))
    key, value = (states[0].transpose(0, 1).flatten(1).contiguous() for states in (seen.key, seen.value))
    return inner(query, key, value, **kwargs)


def _tiled(
    attention: Any, inner: Forward, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> Any:
    """Heads are exchanged before, and back again after."""
    groups, tokens = attention.num_heads // attention.num_kv_heads, len(query)
    heads = query.reshape(tokens, groups, attention.num_kv_heads, attention.head_size)
    made = inner(heads.transpose(1, 2).flatten(1).contiguous(), key, value, **kwargs)
    return made.reshape(tokens, attention.num_kv_heads, groups, attention.head_size).transpose(1, 2).flatten(1)


def _reading_others(
    attention: Any,
    inner: Forward,
    told: dict[str, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    **kwargs: Any,
) -> Any:
    """Before a later chunk is computed, some of a request's blocks take the words of others of its own."""
    from vllm.forward_context import get_forward_context

    found = get_forward_context().attn_metadata
    if found is not None:
        metadata = found[attention.layer_name]
        cache = attention.kv_cache
        size = cache.shape[2]
        first, count, by = (told[name] // size for name in ("first", "count", "by"))
        starts = metadata.seq_lens - metadata.query_start_loc.diff()
        for blocks, start in zip(metadata.block_table, starts.tolist(), strict=False):
            if start >= max(told.get("first_query", 0), told["first"] + told["count"]):
                cache[blocks[first : first + count].long()] = cache[blocks[first + by : first + by + count].long()]
    return inner(query, key, value, **kwargs)
