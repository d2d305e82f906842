"""Run a study: golden answers, an A/A run, the noise floor, then trial after trial into the store."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from aftershock.errors import InputError
from aftershock.numerics import words
from aftershock.replay import Executor, FastExecutor, ItemRun, ReferenceExecutor
from aftershock.study.audit import audited_trials
from aftershock.study.crew import Alone, Crew
from aftershock.study.generated import generated_trials
from aftershock.study.plan import Plan
from aftershock.study.records import GoldenRecord, TrialRecord
from aftershock.study.rounds import Block, next_block
from aftershock.study.store import Store, StoredStudy, load_study

Phase = Literal["golden", "noise", "trials", "audit", "generate"]


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
    crew: Crew | None = None,
) -> StoredStudy:
    """Run what of the plan is not yet in `folder`, and return the whole study.

    `executor` runs the golden answers, and the rest too where no `crew` is given; it is a FastExecutor if none is
    given. A share of the trials is repeated by the reference executor, unless that one ran them all, and some are
    decoded by plain `generate` too.
    Raises InputError when `folder` holds another study, and ContractError when a model is not, in the end,
    bit for bit the model that was loaded.
    """
    executor = FastExecutor(plan.model) if executor is None else executor
    with _open(plan, folder, resume) as store, crew or Alone(plan, executor) as crew:
        stored = store.read()
        if not stored.golden:
            _golden(plan, executor, store, watch)
        _noise(plan, crew, store, watch)
        for finished, record in enumerate(stored.trials, 1):
            watch(Progress("trials", finished, plan.trials, record, stored=True))
        block = next_block(plan, stored.trials)
        while block.trials:
            _trials(block, crew, store, watch)
            block = next_block(plan, store.read().trials)
        if executor.audited:
            _audit(block.plan, crew, store, watch)
        _generate(block.plan, crew, store, watch)
        return store.read()


def _trials(block: Block, crew: Crew, store: Store, watch: Watch) -> None:
    """Run the trials of a block into the store."""
    done = len(store.done())
    total = done + len(block.trials)
    begin = time.perf_counter()
    for finished, record in enumerate(crew.trials(map(block.plan.trial, block.trials)), 1 + done):
        now = time.perf_counter()
        store.put_trial(record, now - begin)
        begin = now
        watch(Progress("trials", finished, total, record))


def _open(plan: Plan, folder: Path, resume: bool) -> Store:
    if not resume:
        return Store.create(folder, plan.settings, plan.digest, plan.environment, plan.trials)
    found = load_study(folder).plan_digest
    if found != plan.digest:
        raise InputError(
            f"{folder} holds another study (plan {found[:12]}, this one is {plan.digest[:12]}; model, settings, "
            "library versions, device and threads all count): resume with what made it, or choose another --out"
        )
    return Store.open(folder)


def _noise(plan: Plan, crew: Crew, store: Store, watch: Watch) -> None:
    """What of the noise floor is not stored yet."""
    numbers = range(plan.settings.run.noise * len(plan.used_batches))
    done = store.noise_done()
    watch(Progress("noise", len(done), len(numbers)))
    missing = (number for number in numbers if number not in done)
    for finished, (number, record) in enumerate(crew.noise(missing), 1 + len(done)):
        store.put_noise(number, record)
        watch(Progress("noise", finished, len(numbers)))


def _audit(plan: Plan, crew: Crew, store: Store, watch: Watch) -> None:
    """Repeat a share of the trials by the reference executor and keep whether each record came out the same."""
    study = store.read()
    stored = {record.trial: record for record in study.trials}
    audited = audited_trials(study.trials, plan.settings.run.audit, plan.settings.run.seed)
    missing = [plan.trial(number) for number in audited if number not in study.audits]
    done = len(audited) - len(missing)
    watch(Progress("audit", done, len(audited)))
    for record in crew.audits(missing):
        same = stored[record.trial].model_copy(update={"residual_error": None})
        store.put_audit(record.trial, record.result == same.result)
        done += 1
        watch(Progress("audit", done, len(audited)))


def _generate(plan: Plan, crew: Crew, store: Store, watch: Watch) -> None:
    """Decode some trials by plain `generate`, to be compared with their records."""
    study, run = store.read(), plan.settings.run
    chosen = generated_trials(study.trials, study.golden, run.audit, run.seed)
    stored = {record.trial for record in study.generated}
    missing = [plan.trial(number) for number in chosen if number not in stored]
    done = len(chosen) - len(missing)
    watch(Progress("generate", done, len(chosen)))
    for record in crew.generated(missing):
        store.put_generated(record)
        done += 1
        watch(Progress("generate", done, len(chosen)))


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
                options=item.continuations if item.kind == "choice" else item.options,
                output=run.answer.output,
                reference=None if item.answer is None else str(item.answer),
                right=run.answer.right,
                score=run.answer.score,
                chance=item.chance,
            )
            for item, run in zip(batch.items, first, strict=True)
        ]
    store.put_golden(tuple(records), disagreements)


def _identical(first: ItemRun, second: ItemRun) -> bool:
    """Whether two runs of an item agree in their answer and in every bit of their logits."""
    return first.answer == second.answer and all(
        torch.equal(words(a), words(b)) for a, b in zip(first.logits, second.logits, strict=True)
    )
