"""Rung: do target and reference agree on the numbers of the model's configuration, and on how tokens are chosen?

A disagreement is a lead: what the target computes decides whether it matters.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.rungs.sampling import Sampling

FP32 = 1e-6
"""Relative difference that storing a number in fp32 explains."""

_VALUES: dict[str, tuple[str, str]] = {
    "rms_norm_eps": ("attn_norm", "norm_eps"),
    "layer_norm_eps": ("attn_norm", "norm_eps"),
    "layer_norm_epsilon": ("attn_norm", "norm_eps"),
    "num_attention_heads": ("q", "kv_head_mapping"),
    "num_key_value_heads": ("attention", "kv_head_mapping"),
    "query_pre_attn_scalar": ("attention", "attention_scale"),
    "attn_logit_softcapping": ("attention", "attention_softcap"),
    "final_logit_softcapping": ("logits", "logit_softcap"),
    "sliding_window": ("attention", "window_size"),
    "layer_types": ("attention", "window_layers"),
    "hidden_act": ("activation", "activation_function"),
    "hidden_activation": ("activation", "activation_function"),
    "activation_function": ("activation", "activation_function"),
    "tie_word_embeddings": ("logits", "lm_head_tying"),
    "num_experts_per_tok": ("router", "router_top_k"),
    "norm_topk_prob": ("router", "router_normalisation"),
    "attention_bias": ("q", "bias_missing"),
    "mlp_bias": ("gate", "bias_missing"),
}
"""Component and cause of a disagreement about a key."""


def settings_rung(
    target: Mapping[str, Any], reference: Mapping[str, Any], declared: Sampling | None, asked: Sampling
) -> Rung:
    """Compare the values of `settings["config"]`, as the target uses them, with the reference's configuration, and the
    sampling that it declares with the one asked for."""
    config = target.get("config")
    if not isinstance(config, Mapping) and declared is None:
        why = "the target says nothing of its configuration"
        return Rung(name="settings", state="not checked", said=why)
    theirs, ours = (values(one) if isinstance(one, Mapping) else {} for one in (config, reference))
    shared = theirs.keys() & ours.keys()
    findings = tuple(_config_findings(theirs, ours)) + tuple(_sampling_findings(declared, asked))
    if findings:
        names = ", ".join(str(one.parameter) for one in findings)
        said = f"target and reference disagree about {names}"
        return Rung(name="settings", state="differs", said=said, findings=findings)
    what = [f"{len(shared)} values of the configuration"] if shared else []
    what += [] if declared is None else ["the sampling"]
    return Rung(name="settings", state="agrees", said=f"target and reference agree about {' and '.join(what)}")


_GGUF = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_used_count": "num_experts_per_tok",
    "rope.freq_base": "rope_theta",
}
"""Keys of a GGUF file's metadata, after the architecture, and what transformers calls them."""


def values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that decide what is computed, rotary ones by one name whatever the version wrote:
    `rope_theta`, `rope_scaling` and `partial_rotary_factor`, after a kind of layer where kinds have their own. The
    metadata of a GGUF file is read as well."""
    if "general.architecture" in config:
        prefix = f"{config['general.architecture']}."
        return {name: _parsed(config[prefix + key]) for key, name in _GGUF.items() if prefix + key in config}
    found = {key: config[key] for key in _VALUES if config.get(key) is not None}
    if config.get("use_sliding_window") is False:
        found.pop("sliding_window", None)
    return found | dict(_rotary(config))


def _parsed(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _rotary(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = {kind: own for kind, own in parameters.items() if isinstance(own, Mapping)} or {"": parameters}
    for kind, own in kinds.items():
        prefix = f"{kind} " if kind else ""
        for key in ("rope_theta", "partial_rotary_factor"):
            value = own.get(key, config.get(key))
            if value is not None:
                yield prefix + key, value
        scaling = {
            key: value
            for key, value in own.items()
            if key not in ("rope_theta", "partial_rotary_factor", "type") and value is not None
        }
        scaling.setdefault("rope_type", own.get("type", "default"))
        yield f"{prefix}rope_scaling", tuple(sorted(scaling.items()))


def _config_findings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Finding]:
    for key in sorted(theirs.keys() & ours.keys()):
        if _alike(theirs[key], ours[key]):
            continue
        component, cause = _cause(key, theirs[key])
        yield Finding(
            component=component,
            cause=cause,
            evidence=f"{key} is {_written(theirs[key])} in the target's configuration, "
            f"{_written(ours[key])} in the reference's",
            parameter=key,
            found=_written(theirs[key]),
            reference=_written(ours[key]),
            confirmed=False,
        )


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers as far as fp32 tells them apart."""
    if all(isinstance(value, int | float) for value in (one, other)):
        return math.isclose(one, other, rel_tol=FP32)
    return bool(one == other)


def _cause(key: str, theirs: Any) -> tuple[str, str]:
    last = key.rpartition(" ")[2]
    if last in _VALUES:
        component, cause = _VALUES[last]
        return component, "bias_extra" if cause == "bias_missing" and theirs else cause
    return "q_rope", {"partial_rotary_factor": "rope_partial"}.get(last, last)


def _sampling_findings(declared: Sampling | None, asked: Sampling) -> Iterator[Finding]:
    if declared is None:
        return
    names = ["temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"]
    # What is cut off matters where something is drawn.
    names += [] if declared.greedy else ["top_k", "top_p"]
    for name in names:
        found, wanted = getattr(declared, name), getattr(asked, name)
        if found != wanted:
            yield Finding(
                component="sampler",
                cause=name,
                evidence=f"{name} is {found:g} in the target's settings, where {wanted:g} was asked for",
                parameter=name,
                found=found,
                reference=wanted,
                confirmed=False,
            )


def _written(value: Any) -> float | str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return value
