"""Every place a fault can strike, in every format: is it struck, is it put back, is the model otherwise left alone?

    python -m benchmarks.surface --json [--quick] [--model SPEC] [--device cuda] [--formats bfloat16 stored]

One cell is a kind of site in a format, struck in one value or in many: by a scattered set, or as long as a pass lasts
and longer. In each, random faults run by both executors on one batch of
answers to write. A cell fails where

- a fault whose moment came for some row struck nothing, or left a word that is not the old one with its bits flipped,
- the words of the model are not what they were, once the cell's trials are over,
- logits with faults armed whose moment never comes differ in one bit from those of the model alone,
- the fast executor's run differs from the reference executor's.
"""

import json
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, get_args

import torch

from aftershock.faults import (
    MAKES_SCORES,
    Fault,
    ScatteredOutput,
    ScatteredWeights,
    Selection,
    StoredWordSite,
    Trigger,
    armed,
    bits_of,
    sample_faults,
    select,
    stored_changes,
)
from aftershock.faults.selection import SiteKind
from aftershock.inject import Injection, StruckSet
from aftershock.models import LoadedModel, align, decode, load, model_hash, teacher_forced
from aftershock.numerics import FORMATS, STORAGE, words
from aftershock.replay import Batch, FastExecutor, Job, ModelCrashedError, ReferenceExecutor, Run, make_batches
from aftershock.tasks import probe_items
from benchmarks.arguments import parser
from benchmarks.environment import environment

NEVER = Trigger(decode(10_000), decode(10_001))

LASTING: dict[str, dict[str, Any]] = {
    "always": {"activation_trigger": "always"},
    "scattered, always": {"draw": "uniform", "rate": 1e-6, "activation_trigger": "always"},
    "scattered in prefill": {"draw": "uniform", "rate": 1e-5, "activation_trigger": "at prefill"},
    "3 a pass from decode:1": {"draw": "uniform", "per_pass": 3, "activation_trigger": "from decode:1"},
}
WAYS: dict[SiteKind, dict[str, dict[str, Any]]] = {
    "weight": {"scattered": {"draw": "uniform", "rate": 1e-6}},
    "activation": LASTING,
    "accumulator": LASTING,
}
"""Keys of a selection for each way in which many values are struck at once."""


def cells(spec: str, device: str, formats: Collection[str]) -> Iterator[tuple[str, tuple[SiteKind, ...], LoadedModel]]:
    """Format, kinds of site, and the model in that format with the attention that shows these; of some `formats`, the
    packed ones among them as `stored`."""
    kinds: tuple[SiteKind, ...] = get_args(SiteKind)
    fused = tuple(kind for kind in kinds if kind not in ("stored", "accumulator", *MAKES_SCORES))
    for number_format in (one for one in FORMATS if one.name in formats):
        yield number_format.name, fused, load(spec, number_format.name, device)
        integers = load(spec, number_format.name, device, arithmetic="w8a8")
        yield f"int32 sums, {number_format.name} around them", ("accumulator",), integers
        yield number_format.name, MAKES_SCORES, load(spec, number_format.name, device, attention="eager")
    if "stored" not in formats:
        return
    if load(spec, "bfloat16", device).components.stored:
        yield "the file's own blocks", ("stored",), load(spec, "bfloat16", device)
    for storage in STORAGE:
        yield storage, ("stored",), load(spec, "bfloat16", device, storage=storage)


def batch_of(model: LoadedModel) -> Batch:
    """Eight short answers to write."""
    items = [replace(item, max_new_tokens=6) for item in probe_items() if item.kind == "generation"][:8]
    return make_batches(items, model, 8, 0)[0]


def drawn(
    kind: SiteKind, keys: dict[str, Any], model: LoadedModel, batch: Batch, trials: int
) -> list[tuple[Fault, ...]]:
    """Flips, single ones where no keys of a selection say otherwise."""
    selection = Selection.model_validate({"sites": (kind,), **keys})
    population = select(selection, model.components)
    return [sample_faults(selection, population, model.format, batch.decode_passes, 1, n) for n in range(trials)]


def cell(
    kind: SiteKind, way: str, keys: dict[str, Any], number_format: str, model: LoadedModel, trials: int
) -> dict[str, Any]:
    """What failed in one cell, each counted in trials."""
    batch = batch_of(model)
    before = model_hash(model.module)
    sets = drawn(kind, keys, model, batch, trials)
    reference, fast = ReferenceExecutor(model), FastExecutor(model)
    begin = time.perf_counter()
    jobs = [Job(number, batch, armed(model, faults)) for number, faults in enumerate(sets)]
    expected = {job.key: run for job, run in reference.trials(jobs)}
    found = {job.key: run for job, run in fast.trials(jobs)}
    return {
        "site": kind,
        "way": way,
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
    masks = [sum(1 << bit for bit in bits_of(fault.corruption)) for fault in named]
    if isinstance(named[0].site, StoredWordSite):
        # Its own bits, and every weight that comes of them.
        (change,) = stored_changes(model, named)
        return change.old ^ change.new == masks[0] and {one.fault for one in run.struck} == set(range(len(job.faults)))
    sets = [one for one in run.struck if isinstance(one, StruckSet)]
    words_struck = [word for one in run.struck for word in (one.first if isinstance(one, StruckSet) else (one,))]
    flipped = [(masks[word.fault], word.old_bits ^ word.new_bits) for word in words_struck]
    if any(isinstance(fault.site, ScatteredWeights | ScatteredOutput) for fault in named):
        # Some of the bits, in each tensor that was drawn; which outputs are struck is the draw's business.
        whole = {one.fault for one in sets} == set(range(len(named))) or not named[0].in_weights
        return whole and bool(sets) <= reached and all(bits and bits & ~mask == 0 for mask, bits in flipped)
    return bool(run.struck) == reached and all(bits == mask for mask, bits in flipped)


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
    every = [*(one.name for one in FORMATS), "stored"]
    options.add_argument("--formats", nargs="+", choices=every, default=every, help="these alone; stored: packed words")
    arguments = options.parse_args()
    rows = []
    for number_format, kinds, model in cells(arguments.model, arguments.device, arguments.formats):
        ways: list[tuple[SiteKind, str, dict[str, Any]]] = [(kind, "one value", {}) for kind in kinds]
        ways += [(kind, way, keys) for kind in kinds for way, keys in WAYS.get(kind, {}).items()]
        for kind, way, keys in ways:
            rows.append(cell(kind, way, keys, number_format, model, 8 if arguments.quick else 40))
            print(rows[-1], file=sys.stderr, flush=True)
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
