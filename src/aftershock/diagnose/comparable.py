"""Whether a target can be held against a reference at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aftershock.capture import Bundle, Manifest, Prompt
from aftershock.diagnose.consistent import check_consistent
from aftershock.errors import InputError
from aftershock.models import LoadedModel

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


def check_comparable(reference: LoadedModel, target: Bundle, prompts: Sequence[Prompt] | None) -> None:
    """Raise InputError for a target that contradicts itself, one of another shape, tokens that the reference does not
    take, and prompts that are not the bundle's."""
    manifest = target.manifest
    check_consistent(target)
    _check_shape(reference, manifest.model, manifest.settings.get("config"))
    _check_layers(reference, manifest)
    _check_tokens(reference, manifest)
    if prompts is not None and len(prompts) != len(manifest.requests):
        raise InputError(
            f"there are {len(prompts)} prompts, where the bundle has {len(manifest.requests)} requests: give the "
            "prompts that it was captured with"
        )


def check_beside(reference: LoadedModel, target: Bundle, beside: Bundle) -> None:
    """Raise InputError, which says that it is the bundle beside, for one that `check_comparable` refuses, and for one
    of another dtype than the target's."""
    own, other = target.manifest.dtype, beside.manifest.dtype
    if own != other:
        raise InputError(
            f"the bundle beside ({beside.manifest.model}) is of dtype {other}, the target of {own}: capture both in one"
        )
    try:
        check_comparable(reference, beside, None)
    except InputError as error:
        raise InputError(f"the bundle beside: {error}") from error


def check_checkpoint(reference: LoadedModel, spec: str, path: Path) -> None:
    """Raise InputError where the folder of a model has a configuration of another shape than the reference's."""
    file = path / "config.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}): get the model again") from error
    _check_shape(reference, spec, found)


def _check_shape(reference: LoadedModel, name: str, theirs: Any) -> None:
    """Compare the sizes that a configuration names with the reference's."""
    if not isinstance(theirs, Mapping):
        return
    config: Any = reference.module.config
    for key in _SIZES:
        own, other = getattr(config, key, None), theirs.get(key)
        if None in (own, other):
            continue
        if not isinstance(other, int):
            raise InputError(f"the configuration of {name} has {key} {other!r}: write a whole number")
        if own != other:
            raise _other(reference, name, f"has {key} {other}, the reference {own}")


def _check_layers(reference: LoadedModel, manifest: Manifest) -> None:
    config: Any = reference.module.config
    count = config.num_hidden_layers
    layers = {record.layer for record in manifest.records if record.layer is not None}
    if layers and max(layers) >= count:
        raise _other(reference, manifest.model, f"has a layer {max(layers)}, the reference {count} layers")
    if layers and max(layers) < count - 1:
        raise InputError(
            f"{manifest.model} has values of layers up to {max(layers)}, the reference {count} layers: give another "
            f"reference than {reference.spec}, or record the last layers too"
        )


def _check_tokens(reference: LoadedModel, manifest: Manifest) -> None:
    config: Any = reference.module.config
    largest = max(max(request.tokens) for request in manifest.requests)
    if largest >= config.vocab_size:
        raise _other(reference, manifest.model, f"reads token {largest}, the reference has {config.vocab_size}")
    for request in manifest.requests:
        length, most = len(request.tokens), config.max_position_embeddings
        if length > most:
            sampled = length - (request.prompt_tokens or length)
            raise InputError(
                f"request {request.id} has {length} tokens{f', {sampled} of them sampled' if sampled else ''}, and "
                f"{reference.spec} takes {most}: capture shorter prompts"
            )


def _other(reference: LoadedModel, name: str, how: str) -> InputError:
    return InputError(
        f"{name} {how}: they are not the same model, give the one that {reference.spec} is, or another reference"
    )
