"""Points of a decoder: what its components hand to each other, by kind and layer, in the order of a forward pass."""

from dataclasses import dataclass

BEFORE: tuple[str, ...] = ("embedding",)
"""Kinds before the layers: what enters the first one."""

INSIDE: tuple[str, ...] = (
    "attn_norm",
    "q",
    "k",
    "v",
    "q_norm",
    "k_norm",
    "q_rope",
    "k_rope",
    "attention",
    "o",
    "post_attn_norm",
    "attn_residual",
    "mlp_norm",
    "router",
    "gate",
    "up",
    "activation",
    "down",
    "expert",
    "post_mlp_norm",
    "residual",
)
"""Kinds of each layer. `q`, `k`, `v` are the projections, before norm and rotation; `attention` is the input of `o`,
`activation` that of `down`; `attn_residual` and `residual` are the sums after attention and after the layer."""

AFTER: tuple[str, ...] = ("final_norm", "logits")
"""Kinds after the layers."""

KINDS = (*BEFORE, *INSIDE, *AFTER)


@dataclass(frozen=True, order=True)
class Point:
    """One kind in one layer; `layer` is -1 before and after the layers. Its values have shape (tokens, channels)."""

    kind: str
    layer: int = -1

    def __str__(self) -> str:
        return self.kind if self.layer < 0 else f"layer {self.layer} {self.kind}"
