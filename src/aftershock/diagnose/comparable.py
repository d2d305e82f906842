"""Whether a target can be held against a reference at all."""

from collections.abc import Mapping, Sequence
from typing import Any

from aftershock.capture import Manifest, Prompt
from aftershock.errors import InputError
from aftershock.models import LoadedModel

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


def check_comparable(reference: LoadedModel, manifest: Manifest, prompts: Sequence[Prompt] | None) -> None:
    """Raise InputError for a target of another shape, tokens that the reference has not, and prompts that are not the
    bundle's."""
    config: Any = reference.module.config
    theirs = manifest.settings.get("config")
    if isinstance(theirs, Mapping):
        for name in _SIZES:
            own, other = getattr(config, name, None), theirs.get(name)
            if None not in (own, other) and own != other:
                raise _other(reference, manifest, f"has {name} {other}, the reference {own}")
    layers = {record.layer for record in manifest.records if record.layer is not None}
    if layers and max(layers) >= config.num_hidden_layers:
        raise _other(reference, manifest, f"has a layer {max(layers)}, the reference {config.num_hidden_layers} layers")
    largest = max(max(request.tokens) for request in manifest.requests)
    if largest >= config.vocab_size:
        raise _other(reference, manifest, f"reads token {largest}, the reference has {config.vocab_size}")
    if prompts is not None and len(prompts) != len(manifest.requests):
        raise InputError(
            f"there are {len(prompts)} prompts, where the bundle has {len(manifest.requests)} requests: give the "
            "prompts that it was captured with"
        )


def _other(reference: LoadedModel, manifest: Manifest, how: str) -> InputError:
    return InputError(
        f"{manifest.model} {how}: they are not the same model, give the one that {reference.spec} is, or another "
        "reference"
    )
