"""What a bundle declares of itself, as the replay needs it: its tokens, and the arithmetic it computes in."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from aftershock.capture import Manifest
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.functions import Tokens
from aftershock.errors import InputError


def tokens_of(manifest: Manifest, device: torch.device) -> Tokens:
    """The tokens of all requests, at the positions that they should have: 0, 1, 2, ... in each request."""
    requests = manifest.requests
    lengths = tuple(len(request.tokens) for request in requests)
    return Tokens(
        ids=torch.tensor([token for request in requests for token in request.tokens], device=device),
        positions=torch.cat([torch.arange(length, device=device) for length in lengths]),
        lengths=lengths,
        prompts=tuple(request.prompt_tokens or len(request.tokens) for request in requests),
        passes=manifest.passes,
    )


def arithmetic_of(manifest: Manifest) -> Arithmetic:
    """The arithmetic that a bundle names: its dtype, and what `settings.arithmetic` says of `cache_dtype` and
    `activation_bits`. Where the dtype is a quantised format (`stored`, `Q4_1`), linear maps round their inputs to 8
    bits and all else is computed in fp32, as llama.cpp does, which keeps keys and values in fp16 unless told otherwise,
    multiplies them with values of the same type, and looks GELU up in a table of fp16.

    Raises InputError for a type that there is none of.
    """
    settings = manifest.settings.get("arithmetic")
    named: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {}
    quantised = is_quantised(manifest.dtype)
    bits = named.get("activation_bits", 8 if quantised else None)
    cache = named.get("cache_dtype", _cache_of(manifest))
    kept = None if cache is None else _dtype(cache, "cache_dtype")
    ggml = manifest.engine.name == "llama.cpp"
    return Arithmetic(
        dtype=torch.float32 if quantised else _dtype(manifest.dtype, "dtype"),
        cache=kept,
        attention=kept if ggml else None,
        gelu=torch.float16 if ggml else None,
        activation_bits=bits if isinstance(bits, int) and bits > 1 else None,
    )


def is_quantised(dtype: str) -> bool:
    """Whether a bundle's dtype is a format of GGUF files, or whatever a file has."""
    return dtype == "stored" or re.fullmatch(r"I?Q\d\w*", dtype) is not None


def reference_dtype(dtype: str) -> str:
    """The dtype to load a reference in, so that its weights are those of a target of this dtype."""
    return dtype if dtype in ("float16", "bfloat16") else "float32"


def _cache_of(manifest: Manifest) -> str | None:
    if manifest.engine.name != "llama.cpp":
        return None
    options = manifest.settings.get("options")
    asked = options.get("cache_type") if isinstance(options, Mapping) else None
    return None if asked == "f32" else "float16"


def _dtype(name: Any, key: str) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"the bundle's {key} is {name}: give a type as torch names it, such as bfloat16")
    return found
