"""Every place a fault can strike, in every format: is it struck, is it put back, is the model otherwise left alone?

    python -m benchmarks.surface --json [--quick] [--model SPEC] [--device cuda]

One cell is a kind of site in a format. In each, random faults run by both executors on one batch of
answers to write. A cell fails where

- a fault whose moment came for some row struck nothing, or left a word that is not the old one with its bits flipped,
- the words of the model are not what they were, once the cell's trials are over,
- logits with faults armed whose moment never comes differ in one bit from those of the model alone,
- the fast executor's run differs from the reference executor's.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import torch

from aftershock.faults import (
    MAKES_SCORES,
    Fault,
    Flip,
    Selection,
    StoredWordSite,
    Trigger,
    armed,
    sample_faults,
    select,
    stored_changes,
)
from aftershock.faults.selection import SiteKind
from aftershock.inject import Injection
from aftershock.models import LoadedModel, align, decode, load, model_hash, teacher_forced
from aftershock.numerics import FORMATS, STORAGE, words
from aftershock.replay import Batch, FastExecutor, Job, ModelCrashedError, ReferenceExecutor, Run, make_batches
from aftershock.tasks import probe_items
from benchmarks.arguments import parser
from benchmarks.environment import environment

NEVER = Trigger(decode(10_000), decode(10_001))


def cells(spec: str, device: str) -> Iterator[tuple[str, tuple[SiteKind, ...], LoadedModel]]:
    """Format, kinds of site, and the model in that format with the attention that shows these."""
    kinds: tuple[SiteKind, ...] = get_args(SiteKind)
    fused = tuple(kind for kind in kinds if kind not in ("stored", "accumulator", *MAKES_SCORES))
    for number_format in FORMATS:
        yield number_format.name, fused, load(spec, number_format.name, device)
        integers = load(spec, number_format.name, device, arithmetic="w8a8")
        yield f"int32 sums, {number_format.name} around them", ("accumulator",), integers
        yield number_format.name, MAKES_SCORES, load(spec, number_format.name, device, attention="eager")
    if load(spec, "bfloat16", device).components.stored:
        yield "the file's own blocks", ("stored",), load(spec, "bfloat16", device)
    for storage in STORAGE:
        yield storage, ("stored",), load(spec, "bfloat16", device, storage=storage)


def batch_of(model: LoadedModel) -> Batch:
    """Eight short answers to write."""
    items = [replace(item, max_new_tokens=6) for item in probe_items() if item.kind == "generation"][:8]
    return make_batches(items, model, 8, 0)[0]


def drawn(kind: SiteKind, model: LoadedModel, batch: Batch, trials: int) -> list[tuple[Fault, ...]]:
    """Single flips."""
    selection = Selection(sites=(kind,))
    population = select(selection, model.components)
    return [sample_faults(selection, population, model.format, batch.decode_passes, 1, n) for n in range(trials)]


def cell(kind: SiteKind, number_format: str, model: LoadedModel, trials: int) -> dict[str, Any]:
    """What failed in one cell, each counted in trials."""
    batch = batch_of(model)
    before = model_hash(model.module)
    sets = drawn(kind, model, batch, trials)
    reference, fast = ReferenceExecutor(model), FastExecutor(model)
    begin = time.perf_counter()
    jobs = [Job(number, batch, armed(model, faults)) for number, faults in enumerate(sets)]
    expected = {job.key: run for job, run in reference.trials(jobs)}
    found = {job.key: run for job, run in fast.trials(jobs)}
    return {
        "site": kind,
        "format": number_format,
        "trials": trials,
        "not_struck": sum(not _struck(model, job, sets[number], expected[number]) for number, job in enumerate(jobs)),
        "not_undone": int(model_hash(model.module) != before),
        "idle_differs": sum(not _idle(model, faults) for faults in sets[:4]),
        "executors_differ": sum(_shown(found[job.key]) != _shown(expected[job.key]) for job in jobs),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def _struck(model: LoadedModel, job: Job, named: tuple[Fault, ...], run: Run | ModelCrashedError) -> bool:
    """Whether the fault struck all that it should, and nothing but bits flipped."""
    reached = isinstance(run, ModelCrashedError) or any(item.reached for item in run.items)
    (fault,) = named
    assert isinstance(fault.corruption, Flip)
    mask = sum(1 << bit for bit in fault.corruption.bits)
    if isinstance(fault.site, StoredWordSite):
        # Its own bits, and every weight that comes of them.
        (change,) = stored_changes(model, named)
        return change.old ^ change.new == mask and {one.fault for one in run.struck} == set(range(len(job.faults)))
    return bool(run.struck) == reached and all(one.old_bits ^ one.new_bits == mask for one in run.struck)


def _idle(model: LoadedModel, faults: tuple[Fault, ...]) -> bool:
    """Whether faults that are armed and never due leave every logit as it is."""
    block = align([[5, 6, 7, 8], [9, 10]], [[11, 12], [13]], model.device)
    waiting = [replace(fault, trigger=NEVER) for fault in armed(model, faults)]
    with torch.inference_mode():
        clean = teacher_forced(model, block, frozenset(), lambda call: None)
        with Injection(model, waiting) as injection:
            idle = teacher_forced(model, block, frozenset(), injection.begin_pass)
    return torch.equal(words(idle), words(clean)) and not injection.struck


def _shown(run: Run | ModelCrashedError) -> str:
    """All of a run; NaN equals itself in print."""
    if isinstance(run, ModelCrashedError):
        return f"crash {run.struck}"
    return repr([(item.answer, item.forced, item.reached, item.apart) for item in run.items]) + repr(run.struck)


def main() -> None:
    """Print one JSON object on the last line."""
    options = parser(__doc__, "8 trials a cell instead of 40")
    options.add_argument("--model", default="demo:smollm2-135m")
    options.add_argument("--device", default="cpu")
    arguments = options.parse_args()
    rows = []
    for number_format, kinds, model in cells(arguments.model, arguments.device):
        for kind in kinds:
            rows.append(cell(kind, number_format, model, 8 if arguments.quick else 40))
            if not arguments.json:
                print(rows[-1], flush=True)
    faults = ("not_struck", "not_undone", "idle_differs", "executors_differ")
    failed = sum(any(row[name] for name in faults) for row in rows)
    checks = [{"name": "cells with a failure", "value": failed, "target": 0, "unit": "cells", "met": failed == 0}]
    print(
        json.dumps(
            {
                "benchmark": "surface",
                "model": arguments.model,
                "device": arguments.device,
                **environment(),
                "n": len(rows),
                "cells": rows,
                "checks": checks,
            }
        )
    )


if __name__ == "__main__":
    main()
