"""The tensors of a decoder by what they do, whatever names and fusions a family has for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from aftershock.models import LoadedModel

Role = Literal["weight", "bias"]

_OWN = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "mlp.gate": "router",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
}
_SANDWICH = {
    **_OWN,
    "post_attention_layernorm": "post_attn_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}
_OUTSIDE = {"model.embed_tokens": "embedding", "model.norm": "final_norm", "lm_head": "logits"}


@dataclass(frozen=True, order=True)
class Part:
    """A tensor of one kind of point in one layer (-1 outside): the weight or the bias that its values are made with. Of
    a mixture `gate`, `up` and `down` have a first axis for the experts."""

    kind: str
    layer: int
    role: Role = "weight"


Weights = Mapping[Part, torch.Tensor]
"""Linear weights have shape (outputs, inputs)."""


def weights_of(model: LoadedModel) -> dict[Part, torch.Tensor]:
    """The tensors of a model of one of `FAMILIES`, none of them copied; a tied lm_head has the embedding's."""
    found = {part: tensor for name, own in model.module.named_parameters() for part, tensor in _parts(model, name, own)}
    return {Part("logits", -1): found[Part("embedding", -1)], **found}


def _parts(model: LoadedModel, name: str, tensor: torch.Tensor) -> Iterator[tuple[Part, torch.Tensor]]:
    tensor = tensor.detach()
    path, _, last = name.rpartition(".")
    role: Role = "bias" if last == "bias" else "weight"
    if path in _OUTSIDE:
        yield Part(_OUTSIDE[path], -1, role), tensor
        return
    layer, _, inside = name.removeprefix("model.layers.").partition(".")
    number = int(layer)
    fused = [site for site in model.components.parameters if site.name == name]
    if len(fused) > 1 and tensor.dim() == 2:
        for site in fused:
            rows = torch.arange(len(tensor), device=tensor.device)
            own = (rows % site.rows.period >= site.rows.offset) & (
                rows % site.rows.period < site.rows.offset + site.rows.length
            )
            yield Part(site.component, number, role), tensor[own]
    elif inside == "mlp.experts.gate_up_proj":
        gate, up = tensor.chunk(2, dim=1)
        yield Part("gate", number), gate
        yield Part("up", number), up
    elif inside == "mlp.experts.down_proj":
        yield Part("down", number), tensor
    else:
        names = _SANDWICH if "gemma" in model.components.architecture.lower() else _OWN
        yield Part(names[inside.rpartition(".")[0]], number, role), tensor
