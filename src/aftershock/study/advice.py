"""How many items each fault should see: from how a pilot's items shared their fault's fate, and from what they cost."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from aftershock.errors import InputError
from aftershock.faults import armed
from aftershock.replay import Batch, FastExecutor, Job
from aftershock.stats import clustering, items_per_fault
from aftershock.study.plan import Plan
from aftershock.study.records import SDC, Record
from aftershock.study.store import StoredStudy

TIMED = 12
"""Trials that are timed."""


class Advice(Record):
    """Items per fault that give the narrowest interval in a given time, `best`, at most all items of the task.

    `correlation` is the pilot's intra-fault correlation over `faults` faults; `fault_seconds` and `item_seconds` are
    what one more fault and one more item under it cost on this machine, in one batch.
    """

    best: int
    correlation: float
    faults: int
    fault_seconds: float
    item_seconds: float

    def text(self) -> str:
        """The advice for a person."""
        return (
            f"items      {self.best} for each fault would tell most in a given time: in the pilot items shared their "
            f"fault's fate with a correlation of {self.correlation:.2f} ({self.faults} faults); one more fault costs "
            f"{1000 * self.fault_seconds:.1f} ms, one more item {1000 * self.item_seconds:.1f} ms "
            "(items_per_fault and batch_items)"
        )


def advise(plan: Plan, pilot: StoredStudy) -> Advice:
    """Advice for a plan from a pilot study, which may be any study of like faults and items, complete or not.

    Faults of a stratified pilot count alike here, whatever they stand for. Raises InputError when the pilot has no
    eligible item, or the plan's batches have a single item and so can't tell what one more costs.
    """
    trials = [trial for trial in pilot.trials if trial.eligible]
    if not trials:
        raise InputError(f"the pilot {pilot.folder} has no trial with an eligible item: let it run on")
    failed = [sum(item.outcome in SDC for item in trial.eligible) for trial in trials]
    found = clustering(failed, [len(trial.eligible) for trial in trials])
    fault, item = trial_costs(plan)
    best = items_per_fault(found.intracluster_correlation, fault, item)
    return Advice(
        best=round(min(best, len(plan.task.items))),
        correlation=found.intracluster_correlation,
        faults=len(trials),
        fault_seconds=fault,
        item_seconds=item,
    )


def trial_costs(plan: Plan) -> tuple[float, float]:
    """Seconds of one more fault, and of one more item under a fault, by the fast executor: the same faults on the
    largest batch and on a quarter of it. Both are positive. Raises InputError when no batch has two items."""
    whole = max(plan.used_batches, key=lambda batch: len(batch.items))
    items = len(whole.items)
    if items == 1:
        raise InputError("batches of one item can't tell what one more item costs: raise batch_items")
    few = max(1, items // 4)
    part = replace(whole, items=whole.items[:few], rows=whole.rows[:few])
    many_seconds, few_seconds = _seconds(plan, whole), _seconds(plan, part)
    item = max((many_seconds - few_seconds) / (items - few), 1e-3 * many_seconds / items)
    return max(few_seconds - few * item, 1e-3 * few_seconds), item


def _seconds(plan: Plan, batch: Batch) -> float:
    return trial_seconds(plan, lambda _: (batch,))


def trial_seconds(plan: Plan, batches_of: Callable[[int], Iterable[Batch]]) -> float:
    """Seconds of a trial by the fast executor, from the first TIMED ones; `batches_of` gives the batches of each."""
    executor = FastExecutor(plan.model)
    numbers = range(min(TIMED, plan.settings.round_ends[0]))
    jobs = [
        Job((trial, batch.number), batch, armed(plan.model, plan.faults_of(trial)))
        for trial in numbers
        for batch in batches_of(trial)
    ]
    for job in jobs:
        executor.golden(job.batch, job.faults)
    begin = time.perf_counter()
    for _ in executor.trials(jobs):
        pass
    return (time.perf_counter() - begin) / len(numbers)
