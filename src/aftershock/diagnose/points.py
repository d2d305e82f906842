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
    "shared_router",
    "gate",
    "up",
    "activation",
    "down",
    "expert",
    "mixture",
    "post_mlp_norm",
    "residual",
)
"""Kinds of each layer. `q`, `k`, `v` are the projections, before norm and rotation; `attention` is the input of `o`,
`activation` that of `down`; `expert` is what the chosen experts give together, `mixture` that and what a shared one,
which `down` ends, gives by the share that `shared_router` says; `attn_residual` and `residual` are the sums after
attention and after the layer."""

AFTER: tuple[str, ...] = ("final_norm", "logits")
"""Kinds after the layers."""

KINDS = (*BEFORE, *INSIDE, *AFTER)

LINEAR: tuple[str, ...] = ("q", "k", "v", "o", "router", "shared_router", "gate", "up", "down", "logits")
"""Kinds that a linear map makes."""

NORMED: tuple[str, ...] = ("attn_norm", "q_norm", "k_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm", "final_norm")
"""Kinds that a norm makes."""

ENTERING = "entering"
"""What enters a layer: the output of the one before, or the embedding."""

SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "embedding": (),
    "attn_norm": ((ENTERING,),),
    "q": (("attn_norm",),),
    "k": (("attn_norm",),),
    "v": (("attn_norm",),),
    "q_norm": (("q",),),
    "k_norm": (("k",),),
    "q_rope": (("q_norm", "q"),),
    "k_rope": (("k_norm", "k"),),
    "attention": (("q_rope", "q_norm", "q"), ("k_rope", "k_norm", "k"), ("v",)),
    "o": (("attention",),),
    "post_attn_norm": (("o",),),
    "attn_residual": ((ENTERING,), ("post_attn_norm", "o")),
    "mlp_norm": (("attn_residual",),),
    "router": (("mlp_norm",),),
    "shared_router": (("mlp_norm",),),
    "gate": (("mlp_norm",),),
    "up": (("mlp_norm",),),
    "activation": (("gate", "up"), ("up",)),
    "down": (("activation",),),
    "expert": (("mlp_norm",), ("router",)),
    "mixture": (("expert",), ("down",), ("shared_router",)),
    "post_mlp_norm": (("mixture", "expert", "down"),),
    "residual": (("attn_residual",), ("post_mlp_norm", "mixture", "expert", "down")),
    "final_norm": ((ENTERING,),),
    "logits": (("final_norm",),),
}
"""What each kind is computed from: for each value, the kinds it may be, of which the first that the layer has is it."""


@dataclass(frozen=True, order=True)
class Point:
    """One kind in one layer; `layer` is -1 before and after the layers. Its values have shape (tokens, channels)."""

    kind: str
    layer: int = -1

    def __str__(self) -> str:
        return self.kind if self.layer < 0 else f"layer {self.layer} {self.kind}"
