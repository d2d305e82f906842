"""What means nothing and changes answers all the same: the same questions in batches of another shape."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aftershock.replay import Batch, ItemRun, ReferenceExecutor
from aftershock.tasks import classify
from benchmarks.protect_figures import NOISE
from benchmarks.protect_generations import share
from benchmarks.protect_parts import Drawn
from benchmarks.recorded import Lines

SHAPES = 10**6
"""Numbers of these records begin here, after those of drawn changes."""


def run_reshaped(drawn: Drawn, lines: Lines) -> None:
    """Of each batch the share of its questions that two halves of it answer wrong, where the whole answered right."""
    for batch in drawn.plan.batches:
        key = {"part": drawn.part.name, "scheme": NOISE, "trial": SHAPES + batch.number}
        if key not in lines:
            lines.put({**key, **_reshaped(drawn, batch)})


def _reshaped(drawn: Drawn, batch: Batch) -> dict[str, Any]:
    model = drawn.plan.model
    clean = ReferenceExecutor(model).golden(batch).items
    # Halves keep the batch's number, so each has an executor of its own.
    found: list[ItemRun] = [one for half in _halves(batch) for one in ReferenceExecutor(model).golden(half).items]
    pairs = zip(batch.items, clean, found, strict=True)
    outcomes = [classify(item, one.answer, other.answer) for item, one, other in pairs]
    return {"outcomes": outcomes, "sdc": share(outcomes, [one.answer for one in clean]), "ran": True}


def _halves(batch: Batch) -> Iterator[Batch]:
    middle = (len(batch.items) + 1) // 2
    for part in (slice(None, middle), slice(middle, None)):
        if batch.items[part]:
            yield replace(batch, items=batch.items[part], rows=batch.rows[part])
