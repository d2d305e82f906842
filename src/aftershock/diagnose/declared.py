"""What a bundle declares of itself, as the replay needs it: tokens, values, arithmetic, whether it is complete."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from aftershock.capture import Bundle, Manifest, Stored
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.functions import Tokens, angles, angles_in_turn
from aftershock.errors import InputError

_COMPUTED_IN: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "float64": torch.float32,
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
)
"""What the replay computes in for a target of a dtype."""

_LISTED = f"{', '.join(_COMPUTED_IN)}, stored, or a format of GGUF files such as Q8_0"


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


def at_most_single(bundle: Bundle) -> Bundle:
    """A bundle with values in fp64 rounded to fp32, which is what `arithmetic_of` judges them in."""
    return Bundle(bundle.manifest, _AtMostSingle(bundle.tensors))


@dataclass(frozen=True, eq=False)
class _AtMostSingle(Mapping[Stored, torch.Tensor]):
    """Tensors, each rounded when it is asked for."""

    tensors: Mapping[Stored, torch.Tensor]

    def __getitem__(self, stored: Stored) -> torch.Tensor:
        values = self.tensors[stored]
        return values.float() if values.dtype == torch.float64 else values

    def __iter__(self) -> Iterator[Stored]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def arithmetic_of(manifest: Manifest) -> Arithmetic:
    """The arithmetic that a bundle names: its dtype, and what `settings.arithmetic` says of `cache_dtype` and
    `activation_bits`. For float64 it is fp32's: norms, softmax and rotations are computed in that by models of
    transformers whatever their type. Where the dtype is a quantised format (`stored`, `Q4_1`), linear maps round their
    inputs to 8 bits (in blocks of 256 where their weights are of a K format) and all else is computed in fp32, as
    llama.cpp does. That keeps keys and values in fp16 unless told
    otherwise, multiplies them with values of the same type, looks GELU up in a table of fp16, and has each angle of a
    rotation from the one before it. Its fused attention casts keys and values to fp16 in any case, and adds values up
    in it where a request has few tokens.

    Raises InputError for a type that nothing is computed in.
    """
    settings = manifest.settings.get("arithmetic")
    named: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {}
    quantised = is_quantised(manifest.dtype)
    bits = named.get("activation_bits", 8 if quantised else None)
    cache = named.get("cache_dtype", _cache_of(manifest))
    kept = None if cache is None else _dtype(cache, "cache_dtype")
    ggml = manifest.engine.name == "llama.cpp"
    fused = ggml and bool(_option(manifest, "flash_attention"))
    return Arithmetic(
        dtype=torch.float32 if quantised else _computed_in(manifest.dtype),
        cache=kept,
        attention=kept if ggml else None,
        sums=kept if fused else None,
        gelu=torch.float16 if ggml else None,
        angles=angles_in_turn if ggml else angles,
        activation_bits=bits if isinstance(bits, int) and bits > 1 else None,
        super_blocks=frozenset(own.component for own in manifest.weights if own.component and own.dtype.endswith("_K")),
    )


def cut_short(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What can't be seen of bundles that are not complete, a sentence each."""
    for manifest in manifests:
        if not manifest.complete:
            yield f"what {manifest.engine.name} would have computed after it failed: its bundle is incomplete"


def is_quantised(dtype: str) -> bool:
    """Whether a bundle's dtype is a format of GGUF files, or whatever a file has."""
    return dtype == "stored" or re.fullmatch(r"I?Q\d\w*", dtype) is not None


def reference_dtype(dtype: str) -> str:
    """The dtype to load a reference in, so that its weights are those of a target of this dtype."""
    return dtype if dtype in ("float16", "bfloat16") else "float32"


def _cache_of(manifest: Manifest) -> str | None:
    if manifest.engine.name != "llama.cpp":
        return None
    wide = _option(manifest, "cache_type") == "f32" and not _option(manifest, "flash_attention")
    return None if wide else "float16"


def _option(manifest: Manifest, name: str) -> Any:
    """What the engine was asked for, None where nothing was."""
    options = manifest.settings.get("options")
    return options.get(name) if isinstance(options, Mapping) else None


def _computed_in(name: str) -> torch.dtype:
    if name not in _COMPUTED_IN:
        raise InputError(f"the bundle's dtype is {name}, which nothing is computed in: write one of {_LISTED}")
    return _COMPUTED_IN[name]


def _dtype(name: Any, key: str) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"the bundle's {key} is {name}: give a type as torch names it, such as bfloat16")
    return found
