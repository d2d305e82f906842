"""Find what the attentions of a model keep and make."""

from collections.abc import Sequence
from typing import Any, get_args

import torch

from aftershock.models.attended import CachePart, CacheSite, HeadPart, HeadSite
from aftershock.models.products import multiplies_in_integers


def cache_sites(module: torch.nn.Module, attentions: Sequence[str]) -> tuple[CacheSite, ...]:
    """What a pass over one token leaves in the cache; `attentions` are the paths of the layers' own, in order."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=next(module.parameters()).device)
    with torch.inference_mode():
        output: Any = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    sites = []
    for layer, (path, kept) in enumerate(zip(attentions, output.past_key_values.layers, strict=True)):
        window = getattr(kept, "sliding_window", None)
        for part in get_args(CachePart):
            states = kept.keys if part == "key" else kept.values
            sites.append(CacheSite(path, part, layer, states.shape[1], states.shape[3], window))
    return tuple(sites)


def head_sites(cached: Sequence[CacheSite], config: Any) -> tuple[HeadSite, ...]:
    """What each attention makes, layer by layer; fused kernels show nothing of their scores and probabilities, nor does
    GPT-2's attention in fp32 (`reorder_and_upcast_attn`)."""
    shown = config._attn_implementation == "eager" and not getattr(config, "reorder_and_upcast_attn", False)
    parts: tuple[HeadPart, ...] = ("score", "probability", "head_output") if shown else ("head_output",)
    return _of_heads(cached, config, parts)


def product_sites(cached: Sequence[CacheSite], module: torch.nn.Module) -> tuple[HeadSite, ...]:
    """The sums of each attention's two products, layer by layer, where they are computed in integers."""
    in_integers = [kept for kept in cached if multiplies_in_integers(module.get_submodule(kept.module))]
    return _of_heads(in_integers, module.config, ("qk_accumulator", "sv_accumulator"))


def _of_heads(cached: Sequence[CacheSite], config: Any, parts: tuple[HeadPart, ...]) -> tuple[HeadSite, ...]:
    return tuple(
        HeadSite(kept.module, part, kept.layer, config.num_attention_heads, kept.channels, kept.window)
        for kept in cached
        if kept.part == "value"
        for part in parts
    )
