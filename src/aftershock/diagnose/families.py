"""What the families of decoders compute that their configurations don't say, and what those call by other names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aftershock.errors import InputError
from aftershock.models import LoadedModel


@dataclass(frozen=True)
class Family:
    """A kind of decoder. Norms multiply by `norm_offset` + weight, centred first where `centred`, with the epsilon that
    the configuration has under `eps`, or this one; there are further ones of each head's queries and keys where
    `normed_heads`, after attention and MLP where `sandwiched`. `activation` and `experts` are keys of the
    configuration. Positions are learned, behind so many rows that no position reads, where `learned_from` is given, and
    turn queries and keys otherwise. A configuration has to have the values `required`."""

    eps: str | float = "rms_norm_eps"
    activation: str = "hidden_act"
    norm_offset: float = 0.0
    centred: bool = False
    normed_heads: bool = False
    sandwiched: bool = False
    experts: str | None = None
    learned_from: int | None = None
    required: Mapping[str, object] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(normed_heads=True),
    "gemma2": Family(activation="hidden_activation", norm_offset=1.0, sandwiched=True),
    "gemma3_text": Family(activation="hidden_activation", norm_offset=1.0, sandwiched=True, normed_heads=True),
    "phi3": Family(),
    "mixtral": Family(experts="num_local_experts"),
    "qwen2_moe": Family(experts="num_experts"),
    "qwen3_moe": Family(experts="num_experts", normed_heads=True),
    "gpt2": Family(
        eps="layer_norm_epsilon",
        activation="activation_function",
        centred=True,
        learned_from=0,
        required={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "opt": Family(
        eps=1e-5,
        activation="activation_function",
        centred=True,
        learned_from=2,
        required={
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "layer_norm_elementwise_affine": True,
        },
    ),
}
"""Those that there is a replica of, by `model_type` as in `config.json`."""


def family_of(model: LoadedModel) -> Family:
    """The family of a loaded model. Raises InputError for one without a replica, and for a variant that its replica
    does not cover."""
    config: Any = model.module.config
    name = config.model_type
    if name not in FAMILIES:
        raise InputError(
            f"{model.spec} is of the family {name}, whose components are not known one by one: take one of "
            f"{', '.join(FAMILIES)}"
        )
    for key, value in FAMILIES[name].required.items():
        found = getattr(config, key, value)
        if found != value:
            raise InputError(
                f"{model.spec} has {key} {found} in its configuration, and components are known one by one of "
                f"{name} models with {value} alone: take one of those"
            )
    return FAMILIES[name]
