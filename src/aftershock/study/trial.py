"""Trials: run the batches under the faults and write down what became of each item."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from aftershock.faults import Element, Labels, element_faults, labels, stored_changes
from aftershock.replay import (
    Distance,
    Executor,
    ItemRun,
    Job,
    ModelCrashedError,
    Proof,
    Run,
    residual_error,
)
from aftershock.study.plan import Plan, Trial
from aftershock.study.records import ItemRecord, TrialRecord
from aftershock.study.strikes import Strikes, joined, stored_strikes, strikes_of
from aftershock.tasks import Answer, Item, classify, score_change

KEPT_FAULTS = 64
"""Fault lines and strikes kept in a record; a digest covers the rest."""

_NO_FAULT = Labels("none", "none", None, (), "none", "none")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """What one batch of a trial came to."""

    items: tuple[ItemRecord, ...]
    strikes: Strikes
    error: tuple[float, ...] | None
    proof: Proof | None


def trial_records(executor: Executor, plan: Plan, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
    """The records of trials, each as it is finished; an executor may finish them in another order.

    An exception that the faults provoke in the model is the outcome `crash`.
    """
    unfinished: dict[int, tuple[Trial, tuple[Element, ...], dict[int, _Part]]] = {}

    def jobs() -> Iterator[Job]:
        for trial in trials:
            elements = element_faults(plan.model, trial.faults)
            unfinished[trial.number] = (trial, elements, {})
            faults = tuple(one.fault for one in elements)
            yield from (Job(trial.number, plan.batches[number], faults) for number in trial.batches)

    for job, run in executor.trials(jobs()):
        trial, elements, parts = unfinished[cast(int, job.key)]
        parts[job.batch.number] = _part(executor, plan, job, run, elements, trial.traced)
        if len(parts) == len(trial.batches):
            del unfinished[trial.number]
            yield _record(plan, trial, [parts[number] for number in trial.batches])


def _part(
    executor: Executor, plan: Plan, job: Job, run: Run | ModelCrashedError, elements: Sequence[Element], traced: bool
) -> _Part:
    batch, faults = job.batch, job.faults
    strikes = strikes_of(batch, run.struck, elements)
    golden = executor.golden(batch, faults)
    if isinstance(run, ModelCrashedError):
        _log.info("trial %s crashed: %s", job.key, run)
        crashed = tuple(_crashed(item, clean.answer) for item, clean in zip(batch.items, golden.items, strict=True))
        return _Part(crashed, strikes, None, None)
    items = tuple(
        compare_item(item, clean, faulty, faulty.reached or not faults, faulty.apart)
        for item, clean, faulty in zip(batch.items, golden.items, run.items, strict=True)
    )
    error = residual_error(plan.model, batch, faults, golden) if traced else None
    return _Part(items, strikes, error, run.proof)


def _record(plan: Plan, trial: Trial, parts: Sequence[_Part]) -> TrialRecord:
    faults = trial.faults
    label = labels(faults, plan.model.components, plan.model.format) if faults else _NO_FAULT
    strikes = joined([stored_strikes(stored_changes(plan.model, faults), faults), *(part.strikes for part in parts)])
    errors = [part.error for part in parts if part.error is not None]
    place = trial.place
    return TrialRecord(
        trial=trial.number,
        faults=tuple(map(str, faults[:KEPT_FAULTS])),
        fault_count=strikes.number_of(faults),
        site=label.site,
        component=label.component,
        layer=label.layer,
        bits=label.bits,
        bit_class=label.bit_class,
        stage=label.stage,
        strikes=strikes.words[:KEPT_FAULTS],
        strikes_digest=strikes.digest,
        items=tuple(item for part in parts for item in part.items),
        residual_error=tuple(map(max, zip(*errors, strict=True))) if errors else None,
        stratum=None if place is None else place.stratum.name,
        stratum_chance=None if place is None else place.stratum.chance,
        round=None if place is None else place.round,
        expert=label.expert,
        expert_use=plan.use_of(label),
        proof=_proof([part.proof for part in parts]),
    )


def _proof(found: Sequence[Proof | None]) -> Proof | None:
    """What proves a whole trial: nothing unless each of its batches is proved, and the weaker claim of two."""
    if None in found:
        return None
    return "converged" if "converged" in found else "not_activated"


def compare_item(item: Item, golden: ItemRun, other: ItemRun, reached: bool, apart: Distance | None) -> ItemRecord:
    """The record of one item; `reached` tells whether a fault or perturbation was there at all, `apart` how far the
    logits lie from golden's."""
    clean, answer = golden.answer, other.answer
    return ItemRecord(
        item=item.id,
        outcome=classify(item, clean, answer) if reached else "unreached",
        eligible=reached and clean.right is not False,
        right=answer.right,
        output=None if answer.output == clean.output else answer.output,
        score_change=score_change(item, clean, answer),
        first_difference=first_difference(item, clean, answer),
        rmse=None if apart is None else apart.rmse,
        kl=None if apart is None else apart.kl,
    )


def first_difference(item: Item, golden: Answer, faulty: Answer) -> int | None:
    """Position of the first answer token that differs; options of a choice are not compared token by token."""
    if item.kind == "choice" or golden.tokens == faulty.tokens:
        return None
    pairs = zip(golden.tokens, faulty.tokens, strict=False)
    shorter = min(len(golden.tokens), len(faulty.tokens))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)


def _crashed(item: Item, golden: Answer) -> ItemRecord:
    return ItemRecord(
        item=item.id,
        outcome="crash",
        eligible=golden.right is not False,
        right=None,
        output=None,
        score_change=0.0,
        first_difference=None,
        rmse=None,
        kl=None,
    )
