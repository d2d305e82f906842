"""Whether a bundle is at one with itself: what it declares, and what it holds."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from aftershock.capture import Bundle, Manifest
from aftershock.diagnose.rungs.sampling import sampling_of
from aftershock.errors import InputError

_NARROW = {"float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}
"""The types of few digits: what safetensors calls them, and torch's."""

_ROWS = 32
"""Rows of a tensor whose digits are counted."""

_ROTARY = ("rope_parameters", "rope_scaling")


def check_consistent(bundle: Bundle) -> None:
    """Raise InputError for a bundle without values, one whose values have more digits than its dtype, one with tokens
    that its logits don't reach, and settings that are not what they are named."""
    manifest = bundle.manifest
    if not manifest.stored:
        raise InputError(f"the bundle of {manifest.model} holds no values at all: record modules, or logits")
    _check_logits(manifest)
    _check_settings(manifest)
    _check_digits(bundle)


def _check_logits(manifest: Manifest) -> None:
    if manifest.logits is None:
        return
    count = manifest.logits.stored.shape[-1]
    for request in manifest.requests:
        largest = max(*request.tokens, *request.sampled, 0)
        if request.sampled and largest >= count:
            raise InputError(
                f"request {request.id} has token {largest}, and the bundle's logits have {count} channels: record the "
                "logits of all tokens of the vocabulary"
            )


def _check_settings(manifest: Manifest) -> None:
    config, options = (_mapping(manifest.settings.get(name)) for name in ("config", "options"))
    for key in _ROTARY:
        if not isinstance(config.get(key) or {}, Mapping):
            raise InputError(
                f"settings.config.{key} of the bundle is {config[key]!r}: write an object, as config.json has"
            )
    _check_sampling("sampling", manifest.settings.get("sampling"))
    _check_sampling("options.sampling", options.get("sampling"))


def _mapping(settings: object) -> Mapping[str, Any]:
    return settings if isinstance(settings, Mapping) else {}


def _check_sampling(name: str, settings: object) -> None:
    try:
        found = sampling_of(settings if isinstance(settings, Mapping) else None)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"settings.{name}.{problem['loc'][0]} of the bundle: {problem['msg']}") from None
    if found is None:
        return
    for key in ("temperature", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(found, key)
        least = {"temperature": 0.0, "top_p": 0.0, "repetition_penalty": math.ulp(0.0)}.get(key, -math.inf)
        if not math.isfinite(value) or value < least:
            raise InputError(
                f"settings.{name}.{key} of the bundle is {value:g}, with which nothing is sampled: write what the "
                "engine used"
            )


def _check_digits(bundle: Bundle) -> None:
    """llama.cpp's dtype is that of its weights, and its values have more digits. Elsewhere few tensors do: logits,
    routers."""
    manifest = bundle.manifest
    if manifest.dtype not in _NARROW or manifest.engine.name == "llama.cpp":
        return
    name, narrow = _NARROW[manifest.dtype]
    outputs = list(dict.fromkeys(record.output for record in manifest.records))
    finer = [own for own in outputs if own.dtype != name and _has_more_digits(bundle.tensors[own], narrow)]
    if 2 * len(finer) > len(outputs):
        raise InputError(
            f"the bundle of {manifest.model} says dtype {manifest.dtype}, and {len(finer)} of its tensors have more "
            f"digits than that, {finer[0].key} the first: give the dtype that the engine computes in"
        )


def _has_more_digits(values: torch.Tensor, narrow: torch.dtype) -> bool:
    own = values[:_ROWS]
    return bool(torch.any((own != own.to(narrow).to(own.dtype)) & own.isfinite()))
