"""What does a study on many machines cost beside its trials? `python -m benchmarks.scale --json [--quick]`.

The constants that docs/scale.md plans with, on SmolLM2 (16 prompts, each answered with 64 tokens; single-bit faults):

- the store: records it takes in a second, one transaction each, and bytes of a record in it and on the way to it;
- workers: trials per second of one and of two processes with one thread each, by turns, and what their start costs;
- golden state of one batch: seconds to compute it, beside seconds to pack, copy and unpack as many bytes; bytes of the
  model hashed in a second;
- how many records by workers differ from those of this process.

Two workers need two idle cores: `cores` and `load` say what there was.
"""

import io
import json
import os
import pickle
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aftershock.models import model_hash
from aftershock.replay import FastExecutor
from aftershock.study import Plan, Store, TrialRecord, check_settings, load_study, make_plan
from aftershock.study.crew import Alone
from aftershock.study.dealing import Dealt
from aftershock.study.processes import Processes
from aftershock.study.worker import Message, orders_of
from aftershock.tasks import probe_items
from benchmarks.arguments import parser
from benchmarks.environment import environment

FULL, QUICK = (16, 64, 96, 3, 5000), (4, 16, 24, 1, 500)
"""Prompts, tokens of each answer, trials, turns, and records for the store."""

SPEED_UP = 1.6


class Ready(Processes):
    """Processes that work only once all of them have loaded their models."""

    def start(self) -> int:
        """The number of processes there will be."""
        self._loading = super().start()
        return self._loading

    def hear(self) -> Sequence[tuple[int, Message]]:
        """What workers say; at first that they are all there."""
        said = list(super().hear())
        while len(said) < self._loading:
            said += super().hear()
        self._loading = 0
        return said


def main() -> None:
    """Measure, print, and end with one JSON object on the last line."""
    options = parser(__doc__, "fewer trials, one turn")
    options.add_argument("--model", default="demo:smollm2-135m")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--trials", type=int)
    arguments = options.parse_args()
    prompts, tokens, trials, turns, stored = QUICK if arguments.quick else FULL
    trials = arguments.trials or trials
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = tables(folder, arguments.model, arguments.dtype, prompts, tokens, trials)
        plan = make_plan(check_settings(settings, "benchmark"))
        golden, executor = golden_figures(plan)
        hashed = hash_figure(plan)
        begin = time.perf_counter()
        here = by_trial(Alone(plan, executor).trials(map(plan.trial, range(trials))))
        seconds = time.perf_counter() - begin
        different, rates, starts = by_workers(plan, turns, here)
        store = store_figures(plan, here.values(), folder / "store", stored)
    two_over_one = float(np.median(rates[2]) / np.median(rates[1]))
    checks = [
        check("two workers over one", two_over_one, SPEED_UP, "times", two_over_one >= SPEED_UP),
        check("records by workers that differ", different, 0, "records", different == 0),
    ]
    print(
        json.dumps(
            {
                "benchmark": "scale",
                "what": f"{prompts} prompts x {tokens} tokens, single-bit faults in weights and activations",
                "model": arguments.model,
                "dtype": arguments.dtype,
                **environment(),
                "cores": len(os.sched_getaffinity(0)),
                "load": round(load, 2),
                "quick": arguments.quick,
                "n": trials,
                "seconds": round(time.perf_counter() - started, 1),
                "figures": {
                    "store": store,
                    "trials_per_second": {"here": [round(trials / seconds, 3)], **rounded(rates, 3)},
                    "start_seconds": rounded(starts, 1),
                    "golden": golden,
                    "hash_bytes_per_second": hashed,
                },
                "checks": checks,
            }
        )
    )


def rounded(values: dict[int, list[float]], digits: int) -> dict[str, list[float]]:
    """The figures of each number of workers, turn by turn."""
    return {f"{workers} workers": [round(one, digits) for one in of] for workers, of in values.items()}


def by_trial(records: Iterable[TrialRecord]) -> dict[int, TrialRecord]:
    """Records by trial."""
    return {record.trial: record for record in records}


def check(name: str, value: float, target: float, unit: str, met: bool) -> dict[str, Any]:
    """One figure beside its target."""
    return {"name": name, "value": round(value, 3), "target": target, "unit": unit, "met": met}


def tables(folder: Path, model: str, dtype: str, prompts: int, tokens: int, trials: int) -> dict[str, Any]:
    """A study of generated answers, every fault on all prompts, one thread a worker, no trace and no audit."""
    asked = [item for item in probe_items() if item.kind == "generation"][:prompts]
    task = folder / "prompts.jsonl"
    lines = [
        {"id": item.id, "group": "prompts", "kind": "generation", "contexts": item.contexts, "max_new_tokens": tokens}
        for item in asked
    ]
    task.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return {
        "model": {"spec": model, "dtype": dtype},
        "task": {"spec": str(task)},
        "faults": {"draw": "uniform"},
        "run": {
            "trials": trials,
            "items_per_fault": prompts,
            "batch_items": prompts,
            "traced": 0,
            "threads": 1,
            "audit": 0.0,
        },
    }


def by_workers(
    plan: Plan, turns: int, here: dict[int, TrialRecord]
) -> tuple[int, dict[int, list[float]], dict[int, list[float]]]:
    """Records that are not those of this process; by number of workers, trials per second with models and golden state
    in place, and the seconds until they were, turn by turn."""
    different = 0
    rates: dict[int, list[float]] = {1: [], 2: []}
    starts: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for workers in rates:
            begin = time.perf_counter()
            with Dealt(plan, Ready(orders_of(plan, "fast"), workers)) as crew:
                # One trial for each, whose golden state the others then use.
                assert len(list(crew.trials(map(plan.trial, range(workers))))) == workers
                ready = time.perf_counter()
                found = by_trial(crew.trials(map(plan.trial, here)))
                rates[workers].append(len(found) / (time.perf_counter() - ready))
                starts[workers].append(ready - begin)
            different += sum(found[n].model_dump_json() != record.model_dump_json() for n, record in here.items())
    return different, rates, starts


def store_figures(plan: Plan, found: Collection[TrialRecord], folder: Path, count: int) -> dict[str, float]:
    """Records again and again into a new store."""
    records, items = list(found), len(plan.task.items)
    with Store.create(folder, plan.settings, plan.digest, plan.environment, count) as store:
        numbered = [records[n % len(records)].model_copy(update={"trial": n}) for n in range(count)]
        begin = time.perf_counter()
        for record in numbered:
            store.put_trial(record, 0.0)
        seconds = time.perf_counter() - begin
    assert len(load_study(folder).trials) == count
    size = sum(file.stat().st_size for file in folder.iterdir())
    sent = [len(pickle.dumps(record)) for record in records]
    return {
        "records_per_second": round(count / seconds, 1),
        "bytes_per_record": round(size / count, 1),
        "bytes_per_item": round(size / count / items, 1),
        "bytes_sent_per_record": round(float(np.mean(sent)), 1),
        "bytes_sent_per_task": round(
            float(np.mean([len(pickle.dumps(plan.trial(n))) for n in range(len(records))])), 1
        ),
    }


def hash_figure(plan: Plan) -> float:
    """Bytes of the model hashed in a second, as every worker does when it has loaded it and at its end."""
    begin = time.perf_counter()
    model_hash(plan.model.module)
    return round(sum(one.nbytes for one in plan.model.module.parameters()) / (time.perf_counter() - begin))


def golden_figures(plan: Plan) -> tuple[dict[str, float], FastExecutor]:
    """Golden state of the one batch: computed, and as many bytes packed, copied, unpacked; the executor that has it."""
    (batch,) = plan.batches
    executor = FastExecutor(plan.model)
    begin = time.perf_counter()
    executor.golden(batch)
    computed = time.perf_counter() - begin
    state = torch.zeros(executor.held, dtype=torch.uint8)
    begin = time.perf_counter()
    packed = io.BytesIO()
    torch.save(state, packed)
    torch.load(io.BytesIO(packed.getvalue()))
    shipped = time.perf_counter() - begin
    figures = {"bytes": executor.held, "compute_seconds": round(computed, 3), "copy_seconds": round(shipped, 3)}
    return figures, executor


if __name__ == "__main__":
    main()
