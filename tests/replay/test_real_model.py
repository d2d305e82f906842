"""The fast executor gives the reference executor's bits on a real model too, for every kind of site."""

from dataclasses import replace

import pytest

from aftershock.faults import Selection, sample_faults, select
from aftershock.models import load, model_hash
from aftershock.replay import FastExecutor, Job, ReferenceExecutor, Run, make_batches
from aftershock.replay.shapes import Shapes
from aftershock.tasks import Item, probe_items
from demo_model import SPEC, needs_demo_model

SHAPES = Shapes(copies=1, call_tokens=64, continued_rows=4, head_rows=16)
EACH = 4
"""Fault sets of each kind of site."""


def printed(run: Run) -> str:
    """All of a run; NaN equals itself in print."""
    return repr([(item.answer, item.forced, item.reached, item.apart) for item in run.items]) + repr(run.struck)


def items() -> list[Item]:
    """Two questions of each kind, the texts short."""
    asked = probe_items()
    texts = [replace(item, max_new_tokens=6) for item in asked if item.kind == "generation"][:2]
    return [*texts, *[item for item in asked if item.kind == "choice"][:2]]


@needs_demo_model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_site_agrees_to_the_bit(dtype: str) -> None:
    model = load(SPEC, dtype, "cpu")
    before = model_hash(model.module)
    jobs = []
    for batch in make_batches(items(), model, 2, 0):
        for number in range(4 * EACH):
            kind = ("weight", "activation", "key", "value")[number % 4]
            chosen = Selection(sites=(kind,), bit_classes=("sign", "exponent"))
            population = select(chosen, model.components)
            faults = sample_faults(chosen, population, model.format, batch.decode_passes, 9, number)
            jobs.append(Job((batch.number, number), batch, faults))
    reference, fast = ReferenceExecutor(model, shapes=SHAPES), FastExecutor(model, shapes=SHAPES)
    expected = {job.key: run for job, run in reference.trials(jobs)}
    found = {job.key: run for job, run in fast.trials(jobs)}
    assert {key: printed(run) for key, run in found.items()} == {key: printed(run) for key, run in expected.items()}
    golden = {job.batch.number: fast.golden(job.batch) for job in jobs}
    changed = [key for key, run in found.items() if printed(run) != printed(golden[key[0]])]
    assert len(changed) > EACH
    assert model_hash(model.module) == before
