"""Where faults can change anything at all: layers and columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aftershock.faults import CachedSite, Fault, Site, WeightSite, column_of, parameter_site, site_of
from aftershock.models import Block, LoadedModel

BEFORE_LAYERS = ("embedding", "position")
"""Components outside the decoder layers that come before them; the last norm and lm_head come after."""


@dataclass(frozen=True)
class Reach:
    """Layers and columns of a block that faults touch themselves.

    `first` is the first layer that must run (the number of layers where only what comes after them must), `last` the
    last one that differs from golden's by itself: when its output is golden's, the rest is; None where something after
    the layers differs too. Columns [start, stop) are those in which faults strike, or are read.
    """

    first: int
    last: int | None
    start: int
    stop: int


def reach_of(faults: Sequence[Fault], model: LoadedModel, block: Block) -> Reach:
    """The reach of a fault set; an empty one touches nothing."""
    width = int(block.tokens.shape[1])
    read = [fault for fault in faults if not _never_read(fault, model, block)]
    spans = [_layers(fault, model, block) for fault in read]
    columns = [_columns(fault, block, width) for fault in read]
    written_back = len(read) > 1 and any(isinstance(fault.site, CachedSite) for fault in read)
    lasts = [last for _, last in spans if last is not None]
    return Reach(
        min((first for first, _ in spans), default=model.components.layers),
        max(lasts) if lasts and len(lasts) == len(spans) else None,
        min((start for start, _ in columns), default=width),
        # What is written back where a word's fault ends came of the other faults: a change of its own.
        width if written_back else max((stop for _, stop in columns), default=width),
    )


def _layers(fault: Fault, model: LoadedModel, block: Block) -> tuple[int, int | None]:
    components = model.components
    site = site_of(fault, components)
    if site.layer is not None:
        return site.layer, site.layer
    if not site.component.startswith(BEFORE_LAYERS):
        return components.layers, None
    if not fault.in_weights:
        return 0, 0
    tied = "+" in site.component
    if tied and _embeds_no_token(fault.site, site.component, model, block):
        # What is left is the head.
        return components.layers, None
    return 0, None if tied else 0


def _never_read(fault: Fault, model: LoadedModel, block: Block) -> bool:
    """Whether a fault lies in a row of the embedding that nothing looks up, and that is not the head's too."""
    if not fault.in_weights:
        return False
    component = parameter_site(fault, model.components).component
    return "+" not in component and _embeds_no_token(fault.site, component, model, block)


def _embeds_no_token(place: Site, component: str, model: LoadedModel, block: Block) -> bool:
    """Whether a weight lies in the embedding of a token that the block does not hold."""
    if not (component.startswith("embedding") and isinstance(place, WeightSite)):
        return False
    table = isinstance(model.module.get_submodule(place.parameter.rpartition(".")[0]), torch.nn.Embedding)
    return table and not bool((block.tokens == place.index[0]).any())


def _columns(fault: Fault, block: Block, width: int) -> tuple[int, int]:
    """Columns [start, stop) of the block in which the fault is there; none of them for a moment that never comes."""
    end = fault.trigger.end
    start, stop = min(block.start(fault.first), width), width if end is None else min(block.start(end), width)
    if fault.in_weights or fault.spreads:
        return (start, stop) if start < stop else (width, width)
    # Rows with contexts of one length have the token in one column.
    rows = dict(zip(block.context_lengths, range(block.rows), strict=True)).values()
    struck = {column_of(fault.entry, block, row) for row in rows}
    inside = [column for column in struck if column is not None and column < width]
    if not inside or start >= stop:
        return width, width
    if isinstance(fault.site, CachedSite):
        # A word is read as long as the fault lasts.
        return max(min(inside), start), stop
    return min(inside), max(inside) + 1
