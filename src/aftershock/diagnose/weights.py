"""The tensors of a decoder by what they do, whatever names and fusions a family has for them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from aftershock.diagnose.families import family_of
from aftershock.errors import InputError
from aftershock.models import LoadedModel

Role = Literal["weight", "bias"]

ROUTED = ("experts_gate", "experts_up", "experts_down")
"""Kinds of parts of the experts that a router chooses from: their weights have a first axis for the experts."""

_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn_layer_norm": "attn_norm",
    "ln_1": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "self_attn.out_proj": "o",
    "attn.c_proj": "o",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "post_attention_layernorm": "mlp_norm",
    "final_layer_norm": "mlp_norm",
    "ln_2": "mlp_norm",
    "mlp.gate": "router",
    "mlp.shared_expert_gate": "shared_router",
    "mlp.gate_proj": "gate",
    "mlp.shared_expert.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.shared_expert.up_proj": "up",
    "mlp.c_fc": "up",
    "fc1": "up",
    "mlp.down_proj": "down",
    "mlp.shared_expert.down_proj": "down",
    "mlp.c_proj": "down",
    "fc2": "down",
    "mlp.experts.down_proj": "experts_down",
}
_SANDWICHED = {
    **_INSIDE,
    "post_attention_layernorm": "post_attn_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}
_OUTSIDE = {
    "model.embed_tokens": "embedding",
    "model.decoder.embed_tokens": "embedding",
    "transformer.wte": "embedding",
    "model.decoder.embed_positions": "position",
    "transformer.wpe": "position",
    "model.norm": "final_norm",
    "model.decoder.final_layer_norm": "final_norm",
    "transformer.ln_f": "final_norm",
    "lm_head": "logits",
}
_LAYER = re.compile(r"(?:model|model\.decoder|transformer)\.(?:layers|h)\.(\d+)\.(.+)")


@dataclass(frozen=True, order=True)
class Part:
    """A tensor of one kind of point in one layer (-1 outside): the weight or the bias that its values are made with;
    the table of learned positions (`position`); or what one of `ROUTED` says."""

    kind: str
    layer: int
    role: Role = "weight"


Weights = Mapping[Part, torch.Tensor]
"""Linear weights have shape (outputs, inputs)."""


def weights_of(model: LoadedModel) -> dict[Part, torch.Tensor]:
    """The tensors of a model of one of `FAMILIES`, none of them copied; a tied lm_head has the embedding's.

    Raises InputError for a tensor that no model of its family has a part for.
    """
    found = {part: tensor for name, own in model.module.named_parameters() for part, tensor in _parts(model, name, own)}
    return {Part("logits", -1): found[Part("embedding", -1)], **found}


def _parts(model: LoadedModel, name: str, tensor: torch.Tensor) -> Iterator[tuple[Part, torch.Tensor]]:
    sites = [site for site in model.components.parameters if site.name == name]
    # Some families store what a linear map multiplies with turned round.
    rows = tensor.detach().T if sites[0].dim == 1 else tensor.detach()
    role: Role = "bias" if name.endswith(".bias") else "weight"
    inside = _LAYER.fullmatch(name)
    number, path = (int(inside[1]), inside[2]) if inside else (-1, name)
    path = path.removesuffix(".weight").removesuffix(".bias")
    if len(sites) > 1:
        # The rows of one kind after those of another.
        parts = torch.split(rows, [site.rows.length for site in sites])
        yield from ((Part(site.component, number, role), own) for site, own in zip(sites, parts, strict=True))
        return
    if path == "mlp.experts.gate_up_proj":
        yield from ((Part(kind, number), own) for kind, own in zip(ROUTED[:2], rows.chunk(2, dim=1), strict=True))
        return
    names = _OUTSIDE if inside is None else _SANDWICHED if family_of(model).sandwiched else _INSIDE
    if path not in names:
        raise InputError(
            f"{model.spec} has a tensor {name}, which is no part of a decoder that is known: take a model without it"
        )
    yield Part(names[path], number, role), rows
