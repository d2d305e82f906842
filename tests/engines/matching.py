"""Set the components of two engines' bundles side by side."""

from collections import Counter
from collections.abc import Iterator

import torch

from aftershock.capture import Bundle

Name = tuple[int | None, str, int]
"""Layer, component, and which of the layer's values of that component in call order."""


def components(bundle: Bundle) -> dict[Name, tuple[torch.Tensor, torch.Tensor]]:
    """Token numbers, and values in fp64 of shape (tokens, channels), of every component."""
    manifest = bundle.manifest
    seen: Counter[tuple[int | None, str]] = Counter()
    found = {}
    for record in manifest.records:
        tokens = torch.tensor(manifest.tokens_of(record.span))
        for share in record.shares:
            values = bundle.output(record).double().flatten(1)
            channels = torch.arange(values.shape[-1]) % share.period
            own = values[:, (channels >= share.offset) & (channels < share.offset + share.length)]
            name = record.layer, share.component
            found[*name, seen[name]] = tokens, own
            seen[name] += 1
    if manifest.logits is not None and bundle.logits is not None:
        tokens = torch.tensor(manifest.tokens_of(manifest.logits.span))
        found[None, "logits", 0] = tokens, bundle.logits.double()
    return found


def gaps(reference: Bundle, other: Bundle) -> Iterator[tuple[Name, float]]:
    """The relative error of every component that both have, over the tokens that both have."""
    ours, theirs = components(reference), components(other)
    for name in ours.keys() & theirs.keys():
        (tokens, clean), (own, found) = ours[name], theirs[name]
        both = torch.isin(tokens, own), torch.isin(own, tokens)
        clean, found = clean[both[0]], found[both[1]]
        if len(clean):
            yield name, float((found - clean).norm() / clean.norm())
