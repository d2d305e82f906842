"""Run a study: golden answers, an A/A run, the noise floor, then trial after trial into the store."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import Selection, format_faults, sample_faults, select
from aftershock.models import model_hash
from aftershock.numerics import words
from aftershock.replay import Batch, Executor, FastExecutor, ItemRun, ReferenceExecutor
from aftershock.study.audit import audited_trials
from aftershock.study.plan import Plan
from aftershock.study.probes import next_trials
from aftershock.study.records import GoldenRecord, ItemRecord, NoiseRecord, TrialRecord
from aftershock.study.store import Store, StoredStudy
from aftershock.study.trial import compare_item, trial_records

NOISE_INDEX = 2**32
"""Noise perturbations draw from here on, so that they never repeat a trial's own draws."""

Phase = Literal["golden", "noise", "trials", "audit"]


@dataclass(frozen=True)
class Progress:
    """What a running study says of itself: `done` of `total` steps of a phase, and the trial just finished.

    `stored` tells that the trial was finished before this session, in the study that is resumed.
    """

    phase: Phase
    done: int
    total: int
    record: TrialRecord | None = None
    stored: bool = False


Watch = Callable[[Progress], None]


def run_study(
    plan: Plan,
    folder: Path,
    *,
    resume: bool = False,
    watch: Watch = lambda _: None,
    executor: Executor | None = None,
) -> StoredStudy:
    """Run what of the plan is not yet in `folder`, and return the whole study.

    `executor` runs the trials, a FastExecutor if none is given; a share of them is repeated by the reference executor.
    Raises InputError when `folder` holds another study, and ContractError when the model is not, in the end,
    bit for bit the model that was loaded.
    """
    with _open(plan, folder, resume) as store:
        stored = store.read()
        executor = FastExecutor(plan.model) if executor is None else executor
        with _model_unchanged(plan):
            if not stored.golden:
                _golden(plan, executor, store, watch)
            perturbations = plan.settings.run.noise * len(plan.used_batches)
            for number in range(len(stored.noise), perturbations):
                watch(Progress("noise", number, perturbations))
                store.put_noise(number, _noise(plan, executor, number))
            _trials(plan, executor, store, watch)
            if executor.audited:
                _audit(plan, store, watch)
        return store.read()


def _open(plan: Plan, folder: Path, resume: bool) -> Store:
    if not resume:
        return Store.create(folder, plan.settings, plan.digest, plan.environment, plan.trials)
    store = Store.open(folder)
    found = store.read().plan_digest
    if found != plan.digest:
        raise InputError(
            f"{folder} holds another study (plan {found[:12]}, this one is {plan.digest[:12]}; model, settings, "
            "library versions, device and threads all count): resume with what made it, or choose another --out"
        )
    return store


@contextmanager
def _model_unchanged(plan: Plan) -> Iterator[None]:
    """Check the model's hash at the end, also after an exception or Ctrl-C."""
    try:
        yield
    finally:
        check_unchanged(plan)


def check_unchanged(plan: Plan) -> None:
    """Raise ContractError unless every word of the model is what it was when loaded."""
    if model_hash(plan.model.module) != plan.environment.model_hash:
        raise ContractError("the model in memory is no longer the one that was loaded: an undo failed")


def _trials(plan: Plan, executor: Executor, store: Store, watch: Watch) -> None:
    """Block after block of trials, until the records so far ask for no more."""
    records = {record.trial: record for record in store.read().trials}
    for finished, record in enumerate(records.values(), 1):
        watch(Progress("trials", finished, plan.trials, record, stored=True))
    begin = time.perf_counter()
    while block := next_trials(plan, records):
        # What is known to come: of a search, no more than the block.
        total = len(records) + len(block)
        for record in trial_records(executor, plan, block, plan.traced):
            now = time.perf_counter()
            store.put_trial(record, now - begin)
            begin = now
            records[record.trial] = record
            watch(Progress("trials", len(records), total, record))
            if len(records) % plan.settings.run.check_every == 0:
                check_unchanged(plan)


def _audit(plan: Plan, store: Store, watch: Watch) -> None:
    """Repeat a share of the trials by the reference executor and keep whether each record came out the same."""
    study = store.read()
    stored = {record.trial: record for record in study.trials}
    audited = audited_trials(study.trials, plan.settings.run.audit, plan.settings.run.seed)
    missing = [trial for trial in audited if trial not in study.audits]
    done = len(audited) - len(missing)
    watch(Progress("audit", done, len(audited)))
    for record in trial_records(ReferenceExecutor(plan.model), plan, missing, lambda _: False):
        same = stored[record.trial].model_copy(update={"residual_error": None})
        store.put_audit(record.trial, record.model_dump_json() == same.model_dump_json())
        done += 1
        watch(Progress("audit", done, len(audited)))


def _golden(plan: Plan, executor: Executor, store: Store, watch: Watch) -> None:
    """Golden answers of every batch in use, each run twice: what differs is the machine's own nondeterminism."""
    records: list[GoldenRecord] = []
    disagreements = 0
    for done, batch in enumerate(plan.used_batches):
        watch(Progress("golden", done, len(plan.used_batches)))
        first = executor.golden(batch).items
        for item, run in zip(batch.items, first, strict=True):
            if not run.answer.finite:
                raise InputError(
                    f"{plan.environment.model} in {plan.environment.dtype} gives NaN or infinity on item {item.id} "
                    "without any fault: choose a wider dtype or leave the item out"
                )
        again = ReferenceExecutor(plan.model).golden(batch).items
        disagreements += sum(not _identical(one, other) for one, other in zip(first, again, strict=True))
        records += [
            GoldenRecord(
                item=item.id,
                kind=item.kind,
                group=item.group,
                prompt=item.contexts[0],
                options=item.continuations if item.kind == "choice" else (),
                output=run.answer.output,
                reference=None if item.answer is None else str(item.answer),
                right=run.answer.right,
                score=run.answer.score,
            )
            for item, run in zip(batch.items, first, strict=True)
        ]
    store.put_golden(tuple(records), disagreements)


def _identical(first: ItemRun, second: ItemRun) -> bool:
    """Whether two runs of an item agree in their answer and in every bit of their logits."""
    return first.answer == second.answer and all(
        torch.equal(words(a), words(b)) for a, b in zip(first.logits, second.logits, strict=True)
    )


def _noise(plan: Plan, executor: Executor, number: int) -> NoiseRecord:
    """Perturbation `number` of the noise floor, on one batch.

    The first sweep over the batches changes the batch shape, the others change one weight by one unit in the last
    place (bit 0 flipped for the whole run), another weight for each batch.
    """
    sweep, place = divmod(number, len(plan.used_batches))
    batch = plan.used_batches[place]
    if sweep == 0:
        return NoiseRecord(sweep=sweep, perturbation="another batch shape", items=_other_shape(plan, executor, batch))
    selection = Selection(sites=("weight",), draw="uniform", bits=(0,))
    faults = sample_faults(
        selection,
        select(selection, plan.model.components),
        plan.model.format,
        decode_passes=0,
        seed=plan.settings.run.seed,
        index=NOISE_INDEX + number,
    )
    items = _compared(batch, executor.golden(batch, faults).items, executor.trial(batch, faults).items)
    return NoiseRecord(sweep=sweep, perturbation=format_faults(faults), items=items)


def _other_shape(plan: Plan, executor: Executor, batch: Batch) -> tuple[ItemRecord, ...]:
    """A batch run as two halves; one of a single item, beside a copy of itself."""
    half = (len(batch.items) + 1) // 2
    if len(batch.items) == 1:
        reshaped = [replace(batch, items=batch.items * 2, rows=batch.rows * 2)]
    else:
        parts = (slice(None, half), slice(half, None))
        reshaped = [replace(batch, items=batch.items[part], rows=batch.rows[part]) for part in parts]
    # A batch keeps its number through `replace`, so each reshaped one gets an executor of its own.
    runs = [run for one in reshaped for run in ReferenceExecutor(plan.model).golden(one).items]
    return _compared(batch, executor.golden(batch).items, runs[: len(batch.items)])


def _compared(batch: Batch, golden: Sequence[ItemRun], other: Sequence[ItemRun]) -> tuple[ItemRecord, ...]:
    return tuple(
        compare_item(item, clean, run, reached=True)
        for item, clean, run in zip(batch.items, golden, other, strict=True)
    )
