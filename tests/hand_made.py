"""What a tiny transformers model shows of its points, mapped by hand: a target that needs no alignment."""

import re
from collections.abc import Iterator, Sequence

import torch

from aftershock.capture import Bundle, Record, record
from aftershock.diagnose.architecture import architecture_of
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Shown, Target
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.weights import weights_of
from aftershock.models import LoadedModel

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "qwen2_moe",
    "gpt2",
    "opt",
)
"""Families of tiny models that there is a replica of."""

_KINDS = {
    "input_layernorm": "attn_norm",
    "ln_1": "attn_norm",
    "self_attn_layer_norm": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "self_attn.o_proj": "o",
    "self_attn.out_proj": "o",
    "attn.c_proj": "o",
    "post_attention_layernorm": "mlp_norm",
    "ln_2": "mlp_norm",
    "final_layer_norm": "mlp_norm",
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
    "mlp.gate": "router",
    "mlp.shared_expert_gate": "shared_router",
    "mlp.experts": "expert",
    "": "residual",
}
_SANDWICH = {
    "post_attention_layernorm": "post_attn_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "post_mlp_norm",
}
_FINAL = ("model.norm", "transformer.ln_f", "model.decoder.final_layer_norm")
_INPUTS = {"o": "attention", "down": "activation"}


def replica_of(model: LoadedModel) -> Replica:
    """The replica of a model, in the arithmetic of the model."""
    return Replica(architecture_of(model), weights_of(model), Arithmetic(model.dtype))


def shown_by(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[Tokens, Target]:
    """The tokens of some prompts, and what the model shows of them."""
    bundle = record(model, prompts)
    requests = bundle.manifest.requests
    tokens = Tokens(
        ids=torch.tensor([token for request in requests for token in request.tokens]),
        positions=torch.tensor([position for request in requests for position in request.positions]),
        lengths=tuple(len(request.tokens) for request in requests),
    )
    gemma = "gemma" in model.components.architecture.lower()
    names = {**_KINDS, **_SANDWICH} if gemma else _KINDS
    own = dict(point for entry in bundle.manifest.records for point in _points(bundle, entry, names))
    assert bundle.logits is not None
    return tokens, {**own, Point("logits"): Shown(bundle.logits)}


def _points(bundle: Bundle, entry: Record, names: dict[str, str]) -> Iterator[tuple[Point, Shown]]:
    values = bundle.output(entry).flatten(1)
    if entry.module in _FINAL:
        yield Point("final_norm"), Shown(values)
    if entry.layer is None:
        return
    number = entry.layer
    inside = re.sub(r"^.*?\.(layers|h)\.\d+\.?", "", entry.module)
    if len(entry.shares) > 1:
        channel = torch.arange(values.shape[-1])
        for share in entry.shares:
            within = channel % share.period
            own = (within >= share.offset) & (within < share.offset + share.length)
            yield Point(share.component, number), Shown(values[:, own])
        return
    kind = names.get(inside)
    if kind is None:
        return
    entering = bundle.input(entry)
    if kind in _INPUTS and entering is not None:
        yield Point(_INPUTS[kind], number), Shown(entering.flatten(1))
    if kind == "attn_norm" and number == 0 and entering is not None:
        yield Point("embedding"), Shown(entering.flatten(1))
    yield Point(kind, number), Shown(values)
