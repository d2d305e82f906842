"""Positions that tokens may have been given in place of their own."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from aftershock.diagnose.hypotheses.place import Place
from aftershock.diagnose.signatures import struck

OFFSETS = (*range(1, 17), 32, 64)
"""How far positions may be off."""

Moved = Callable[[torch.Tensor], torch.Tensor]
"""Positions, shape (tokens,), int64 or fp64, from those that they should be."""


def moved(by: torch.Tensor) -> Moved:
    """Positions that are off by so much each."""
    return lambda positions: positions + by


def restarts(place: Place) -> Iterator[tuple[str, Moved]]:
    """Positions that start again at 0, once or in every chunk, or that run on from one request to the next; in words
    and as they are."""
    order = torch.arange(len(place.tokens.ids))
    yield "run on over all requests", lambda _: order
    for name, stretch in stretches(place).items():
        starts = [int(stretch[own].to(torch.int8).argmax()) for own in place.tokens.requests]
        back = torch.repeat_interleave(torch.tensor(starts), torch.tensor(place.tokens.lengths)) * stretch
        yield f"start again {name}", moved(-back)
        for every in sorted({start for start in starts if start}):
            yield f"start again every {every} tokens", partial(torch.remainder, other=every)


def stretches(place: Place) -> dict[str, torch.Tensor]:
    """Tokens that may be struck together, by name: bool, shape (tokens,)."""
    count = len(place.tokens.ids)
    wrong = torch.zeros(count, dtype=torch.bool)
    rows = torch.arange(count) if place.wrong.rows is None else place.wrong.rows
    wrong[rows] = struck(place.wrong.ratios)
    since, until = torch.zeros_like(wrong), torch.zeros_like(wrong)
    for request in place.tokens.requests:
        since[request] = wrong[request].cummax(0).values
        until[request] = since[request] & wrong[request].flip(0).cummax(0).values.flip(0)
    found = {"everywhere": torch.ones_like(wrong)}
    for name, own in {"from the first wrong token on": since, "at the wrong tokens": until}.items():
        if own.any() and not any(own.equal(known) for known in found.values()):
            found[name] = own
    return found
