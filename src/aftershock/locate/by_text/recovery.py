"""What to do about a corruption that no flip undoes: leave out the row, or damp the branch, in which it lies."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from aftershock.locate.by_text.branches import Damped, least, scaled
from aftershock.locate.by_text.search import CONVINCING, Found
from aftershock.locate.by_text.text_loss import TextLoss
from aftershock.models import LoadedModel, ParameterSite

_ROWS = 3
"""Rows of a tensor that are tried, those of the largest words."""

_NEARLY = 0.02
"""How much less, in nats a token, the narrower of two measures may bring and still be taken."""


@dataclass(frozen=True)
class Masked:
    """A row of a parameter set to zero, and how far the loss falls, nats a token."""

    parameter: str
    row: int
    gain: float


Measure = Masked | Damped


def measure(model: LoadedModel, text: TextLoss, found: Found) -> Measure | None:
    """The measure that brings the loss of the text down most where no flip did: a row masked, else a branch damped.

    None where flips were found, where nothing was, and where neither measure convinces. Costs some ten passes.
    """
    if found.flips or not found.corrupted:
        return None
    base = text.refresh()
    damped = least(model, text, base, found.branches[0].branch)
    sites = {site.name: site for site in model.components.parameters if site.layer == damped.branch.layer}
    masked = max(
        (_masking(model, text, base, site, row) for site in sites.values() for row in _rows(model, site)),
        key=lambda one: one.gain,
        default=None,
    )
    if masked is not None and masked.gain >= max(CONVINCING, damped.gain - _NEARLY):
        return masked
    return damped if damped.gain >= CONVINCING else None


def applied(model: LoadedModel, chosen: Measure | None) -> AbstractContextManager[None]:
    """The model with a measure in force while open."""
    if chosen is None:
        return nullcontext()
    if isinstance(chosen, Damped):
        return scaled(model, chosen.branch, chosen.alpha)
    return _masked(model, chosen.parameter, chosen.row)


def _rows(model: LoadedModel, site: ParameterSite) -> list[int]:
    """The rows with the largest words, NaN first."""
    values = model.module.get_parameter(site.name).detach()
    if values.dim() < 2:
        return []
    largest = values.flatten(0, -2).float().abs().amax(1)
    rows: list[int] = largest.topk(min(_ROWS, len(largest))).indices.tolist()
    return rows


def _masking(model: LoadedModel, text: TextLoss, base: torch.Tensor, site: ParameterSite, row: int) -> Masked:
    with _masked(model, site.name, row):
        return Masked(site.name, row, float((base - text.after_flip(site.layer)).mean()))


@contextmanager
def _masked(model: LoadedModel, parameter: str, row: int) -> Iterator[None]:
    values = model.module.get_parameter(parameter).detach().flatten(0, -2)[row]
    kept = values.clone()
    try:
        values.zero_()
        yield
    finally:
        values.copy_(kept)
