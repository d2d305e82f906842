"""What a decoder computes, as numbers and choices: what a serving engine has to agree with its reference about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aftershock.diagnose.families import Family, family_of
from aftershock.models import LoadedModel


@dataclass(frozen=True)
class Norm:
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight), centred first where `centred` (LayerNorm), over groups of
    `group` channels each (None: over all)."""

    eps: float
    offset: float = 0.0
    centred: bool = False
    group: int | None = None


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding: pair j of a head's first 2 x len(frequencies) channels turns by position x frequencies[j].

    Pairs are channels (j, j + half) or, `interleaved`, (2j, 2j + 1). `magnitude` multiplies cosine and sine (YaRN);
    `offset` is added to positions; angles, cosines and sines are computed in `precision` where given, else in the
    values' (fp32 at least).
    """

    theta: float
    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    interleaved: bool = False
    offset: int = 0
    precision: torch.dtype | None = None


@dataclass(frozen=True)
class Attention:
    """`heads` queries of `channels` each over `kv_heads` keys; query head h reads key head `reads[h]`. Scores are
    multiplied by `scale`, capped as cap x tanh(score / cap), and a token sees the `window` last ones, itself included
    (None: all before it; without `causal` those after it too) and the `kept` first ones. The softmax has a further
    score for each head, `sinks`, that no value belongs to, where given."""

    heads: int
    kv_heads: int
    channels: int
    scale: float
    reads: tuple[int, ...]
    rotation: Rotation | None
    window: int | None = None
    softcap: float | None = None
    causal: bool = True
    kept: int = 0
    sinks: tuple[float, ...] | None = None
    norm: Norm | None = None


@dataclass(frozen=True)
class Mixture:
    """Experts: a softmax over all router logits, the `chosen` largest, divided by their sum where `normalised`, times
    `scale`."""

    experts: int
    chosen: int
    normalised: bool
    scale: float = 1.0


@dataclass(frozen=True)
class Layer:
    """A decoder layer: x + o(attention(norm(x))), then x + down(activation(gate(norm(x))) x up(norm(x)))."""

    attn_norm: Norm
    attention: Attention
    mlp_norm: Norm
    activation: str
    post_attn_norm: Norm | None = None
    post_mlp_norm: Norm | None = None
    mixture: Mixture | None = None
    residual_multiplier: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """A whole decoder. Where positions are learned, position p reads row `learned_from` + p of their table."""

    family: str
    layers: tuple[Layer, ...]
    final_norm: Norm
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    learned_from: int | None = None

    def norm(self, kind: str, layer: int) -> Norm:
        """The norm that makes a kind of point in a layer. Raises KeyError where there is none."""
        if kind == "final_norm":
            return self.final_norm
        own = self.layers[layer]
        found = {
            "attn_norm": own.attn_norm,
            "q_norm": own.attention.norm,
            "k_norm": own.attention.norm,
            "post_attn_norm": own.post_attn_norm,
            "mlp_norm": own.mlp_norm,
            "post_mlp_norm": own.post_mlp_norm,
        }[kind]
        if found is None:
            raise KeyError(kind)
        return found


def architecture_of(model: LoadedModel) -> Architecture:
    """The architecture of a loaded model, from its configuration and the frequencies that it turns by.

    Raises InputError for a family, or a variant of one, without a replica.
    """
    config: Any = model.module.config
    own = family_of(model)
    norm = Norm(_eps(config, own), own.norm_offset, own.centred)
    layers = tuple(
        Layer(
            attn_norm=norm,
            attention=_attention(model, own, number),
            mlp_norm=norm,
            activation=getattr(config, own.activation),
            post_attn_norm=norm if own.sandwiched else None,
            post_mlp_norm=norm if own.sandwiched else None,
            mixture=_mixture(config, own, number),
        )
        for number in range(config.num_hidden_layers)
    )
    scale = dict(model.module.named_buffers()).get("model.embed_tokens.embed_scale")
    return Architecture(
        family=config.model_type,
        layers=layers,
        final_norm=norm,
        # Rounded as the model rounds it.
        embedding_multiplier=1.0 if scale is None else float(scale.to(model.dtype)),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        learned_from=own.learned_from,
    )


def _eps(config: Any, family: Family) -> float:
    found: float = getattr(config, family.eps) if isinstance(family.eps, str) else family.eps
    return found


def _attention(model: LoadedModel, family: Family, number: int) -> Attention:
    config: Any = model.module.config
    kept = next(site for site in model.components.cached if site.layer == number)
    heads, kv_heads, channels = config.num_attention_heads, kept.heads, kept.channels
    kinds = getattr(config, "layer_types", None)
    kind = kinds[number] if kinds else None
    # Families without kinds of layers have one window for all of them.
    sliding = kind == "sliding_attention" if kinds else True
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        channels=channels,
        scale=(scalar or channels) ** -0.5,
        reads=tuple(head * kv_heads // heads for head in range(heads)),
        rotation=_rotation(model, kind) if family.learned_from is None else None,
        window=(getattr(config, "sliding_window", None) or None) if sliding else None,
        softcap=getattr(config, "attn_logit_softcapping", None),
        norm=Norm(_eps(config, family), family.norm_offset, group=channels) if family.normed_heads else None,
    )


def _rotation(model: LoadedModel, kind: str | None) -> Rotation:
    config: Any = model.module.config
    rotary: Any = model.module.get_submodule("model.rotary_emb")
    parameters: Mapping[str, Any] = config.rope_parameters
    # Gemma 3 turns by other frequencies in other kinds of layers.
    own = f"{kind}_" if kind is not None and kind in parameters else ""
    return Rotation(
        theta=parameters.get(str(kind), parameters)["rope_theta"],
        frequencies=tuple(getattr(rotary, f"{own}inv_freq").double().tolist()),
        magnitude=float(getattr(rotary, f"{own}attention_scaling")),
    )


def _mixture(config: Any, family: Family, number: int) -> Mixture | None:
    dense = number in (getattr(config, "mlp_only_layers", None) or ())
    if family.experts is None or dense or (number + 1) % getattr(config, "decoder_sparse_step", 1):
        return None
    # A family without this choice has its shares divided.
    normalised = getattr(config, "norm_topk_prob", True)
    return Mixture(getattr(config, family.experts), config.num_experts_per_tok, normalised)
