"""Where the points of a decoder are in a tree of Llama's names, and how a module's call is wrapped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Layers = Sequence[int] | Literal["all"]
"""Numbers of decoder layers."""

Forward = Callable[..., Any]
"""A module's forward pass."""

_PATHS = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "self_attention": "self_attn",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "mlp": "mlp",
    "down": "mlp.down_proj",
    "router": "mlp.gate",
    "shared_expert": "mlp.shared_expert",
    "expert": "mlp",
    "residual": "",
}
_NORMS = {"mlp_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
_OUTSIDE = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "logits": "lm_head"}

POINTS = frozenset((*_PATHS, *_FOUR_NORMS, *_OUTSIDE))
"""Points that an operation may name: those of modules that return them, and `self_attention`, `mlp`, `shared_expert`
(whole blocks)."""


@dataclass(frozen=True)
class Place:
    """A module, and which of its output channels are the point's: all of them, unless its projection is fused. Of
    `part[2]` equal parts, those from `part[0]` to before `part[1]`."""

    module: Any
    part: tuple[int, int, int] = (0, 1, 1)

    def replaced(self, output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The module's output with the point's channels changed, in the first tensor of a tuple."""
        values = output[0] if isinstance(output, tuple) else output
        first, last, parts = (count * values.shape[-1] // self.part[2] for count in self.part)
        made = torch.cat([values[..., :first], change(values[..., first:last]), values[..., last:parts]], -1)
        return (made, *output[1:]) if isinstance(output, tuple) else made


def decoder_layers(model: Any, layers: Layers) -> Iterator[Any]:
    """The decoder layers of those numbers. Raises IndexError for one that the model lacks."""
    found = model.model.layers
    yield from found if layers == "all" else (found[number] for number in layers)


def has_four_norms(layer: Any) -> bool:
    """Whether the layer has norms after attention and MLP too, as Gemma 2 and 3."""
    return hasattr(layer, "pre_feedforward_layernorm")


def places(model: Any, point: str, layers: Layers) -> list[Place]:
    """Where a point is returned: one place a layer, or the only one outside layers. Raises AttributeError or KeyError
    for a point that the model lacks."""
    if point == "logits" and hasattr(model, "logits_processor"):
        return [Place(model.logits_processor)]
    if point in _OUTSIDE:
        return [Place(model.get_submodule(_OUTSIDE[point]))]
    return [_place(model.config, layer, point) for layer in decoder_layers(model, layers)]


def modules_at(model: Any, point: str, layers: Layers) -> list[Any]:
    """The modules of the places."""
    return [place.module for place in places(model, point, layers)]


def _place(config: Any, layer: Any, point: str) -> Place:
    if point in ("q", "k", "v") and hasattr(layer.self_attn, "qkv_proj"):
        heads, pairs = config.num_attention_heads, config.num_key_value_heads
        ends = {"q": (0, heads), "k": (heads, heads + pairs), "v": (heads + pairs, heads + 2 * pairs)}
        return Place(layer.self_attn.qkv_proj, (*ends[point], heads + 2 * pairs))
    if point in ("gate", "up") and hasattr(getattr(layer, "mlp", None), "gate_up_proj"):
        return Place(layer.mlp.gate_up_proj, (0, 1, 2) if point == "gate" else (1, 2, 2))
    path = {**_PATHS, **(_FOUR_NORMS if has_four_norms(layer) else _NORMS)}[point]
    if hasattr(layer, "block_sparse_moe"):
        path = path.replace("mlp", "block_sparse_moe")
    return Place(layer.get_submodule(path))


def wrap(module: Any, around: Callable[[Forward], Forward]) -> None:
    """Replace a module's forward pass by one made from it; hooks still see what goes in and comes out."""
    module.forward = around(module.forward)


def replace_forward(module: Any, forward: Forward) -> None:
    """Give a module another forward pass."""
    module.forward = forward


def wrap_generate(model: Any, around: Callable[[Forward], Forward]) -> None:
    """Replace a model's `generate` by one made from it."""
    model.generate = around(model.generate)
