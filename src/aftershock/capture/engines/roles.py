"""Which component a module of a torch engine is, by its path, for the families that share Llama's and OPT's names."""

import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from wire import Share

Lengths = Callable[[Any, int], tuple[int, ...]]
"""(model configuration, output channels) -> channels of each component, one after another."""


def _whole(_: Any, channels: int) -> tuple[int, ...]:
    return (channels,)


def _halves(_: Any, channels: int) -> tuple[int, ...]:
    return channels // 2, channels // 2


def _heads(config: Any, channels: int) -> tuple[int, ...]:
    queries = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or queries
    head = channels // (queries + 2 * pairs)
    return queries * head, pairs * head, pairs * head


_PATTERNS: tuple[tuple[str, tuple[str, ...], Lengths], ...] = (
    (r"embed_tokens", ("embedding",), _whole),
    (r"embed_positions", ("position",), _whole),
    (r"self_attn\.q_proj", ("q",), _whole),
    (r"self_attn\.k_proj", ("k",), _whole),
    (r"self_attn\.v_proj", ("v",), _whole),
    (r"self_attn\.qkv_proj", ("q", "k", "v"), _heads),
    (r"self_attn\.(q|k)_norm", ("qk_norm",), _whole),
    (r"self_attn\.(o_proj|out_proj)", ("o",), _whole),
    (r"mlp\.gate_proj", ("gate",), _whole),
    (r"mlp\.up_proj", ("up",), _whole),
    (r"mlp\.gate_up_proj", ("gate", "up"), _halves),
    (r"mlp\.down_proj", ("down",), _whole),
    (r"fc1", ("fc1",), _whole),
    (r"fc2", ("fc2",), _whole),
    (r"mlp\.gate", ("router",), _whole),
    (r"mlp\.experts", ("expert",), _whole),
    (r"(input|post_attention|(pre|post)_feedforward)_layernorm", ("norm",), _whole),
    (r"(self_attn|final)_layer_norm|norm", ("norm",), _whole),
    (r"layers\.\d+", ("residual",), _whole),
    (r"lm_head", ("lm_head",), _whole),
)

INPUTS = {"o": "sv", "down": "activation", "fc2": "activation"}
"""What enters a module of a component, where that has a name of its own."""

ROTATED = ("q_rotated", "k_rotated")
"""What a rotary embedding that is given queries and keys returns."""


def layer_of(path: str) -> int | None:
    """Number of the decoder layer that a path lies in."""
    match = re.search(r"(?:^|\.)layers\.(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def shares_of(path: str, config: Any, channels: int) -> tuple[Share, ...]:
    """The components that a module's output channels belong to; none for a module that is no component."""
    return tuple(_shares(path, config, channels))


def _shares(path: str, config: Any, channels: int) -> Iterator[Share]:
    for pattern, components, lengths in _PATTERNS:
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path):
            own = lengths(config, channels)
            offsets = accumulate(own, initial=0)
            for component, offset, length in zip(components, offsets, own, strict=False):
                yield Share(component, offset, length, sum(own))
            return
