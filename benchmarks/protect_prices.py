"""What the compared schemes cost on this machine: time of passes beside the plain model's, in turns, and memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from aftershock.protect import Backup, Ecc, Protection, measured_cost
from aftershock.replay import Batch, make_batches
from aftershock.tasks import Item
from benchmarks.protect_figures import COST
from benchmarks.protect_parts import Drawn
from benchmarks.protect_schemes import INT8, copied, generation_schemes, schemes
from benchmarks.recorded import Lines

PROMPTS, CHARACTERS = 2, 500
"""Texts of a timed pass, and how long each is: about 120 tokens."""

ROUNDS, ANSWER = 7, 16


def run_costs(
    drawn: Drawn,
    text: Path,
    bounds: Mapping[str, tuple[float, float]],
    kept: Sequence[Backup | Ecc],
    lines: Lines,
) -> None:
    """The cost of each scheme on prompts of a text, kept as it comes."""
    batch = prompts(drawn, text)
    for name, protections in priced(drawn, bounds, kept):
        key = {"part": COST, "scheme": name, "trial": 0}
        if key not in lines:
            lines.put({**key, "cost": asdict(measured_cost(drawn.plan.model, protections, [batch], ROUNDS))})


def priced(
    drawn: Drawn, bounds: Mapping[str, tuple[float, float]], kept: Sequence[Backup | Ecc]
) -> Iterator[tuple[str, tuple[Protection, ...]]]:
    """Every scheme once, by name."""
    for scheme in schemes(drawn.part, bounds, ()):
        yield scheme.name, scheme.protections
    yield from generation_schemes(bounds).items()
    for one in kept:
        yield copied(one), (one,)
    yield "int8 down", INT8


def prompts(drawn: Drawn, text: Path) -> Batch:
    """One batch of prompts."""
    found = text.read_text(encoding="utf-8")
    items = [
        Item(str(number), "generation", "cost", (found[number * CHARACTERS :][:CHARACTERS],), max_new_tokens=ANSWER)
        for number in range(PROMPTS)
    ]
    (batch,) = make_batches(items, drawn.plan.model, PROMPTS, 0)
    return batch
