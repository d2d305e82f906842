"""Some trials decoded as plain `generate` decodes them: which ones, and what they came to."""

from collections.abc import Sequence
from math import ceil

from aftershock.faults import Fault, armed, distinct
from aftershock.numerics import generator
from aftershock.replay import Batch, ModelCrashedError, ReferenceExecutor
from aftershock.study.noise import reshaped
from aftershock.study.plan import Plan, Trial
from aftershock.study.records import (
    GeneratedAnswer,
    GeneratedItem,
    GeneratedTrial,
    GoldenRecord,
    ItemRecord,
    TrialRecord,
)
from aftershock.tasks import Answer, Item, RowResult, classify, judge

MOST = 20
"""Trials that are decoded at most. It is what executors save, and each is decoded twice."""


def generated_trials(
    trials: Sequence[TrialRecord], golden: Sequence[GoldenRecord], share: float, seed: int
) -> tuple[int, ...]:
    """The trials to decode: `share` of all, at most MOST, drawn evenly from those that reached a generated answer.

    Not those of the audit, half of which are picked because their answers changed: near ties make a record one draw of
    several, and picked by itself it would show more changes than any other. A function of records and seed alone.
    """
    answers = generated_items(golden)
    able = [record.trial for record in trials if reached_answers(record, answers)]
    count = min(len(able), MOST, ceil(share * len(trials)))
    places = distinct(generator(seed, 0, "plain generate"), len(able), count)
    return tuple(sorted(able[place] for place in places.tolist()))


def generated_items(golden: Sequence[GoldenRecord]) -> frozenset[str]:
    """The items whose answers the model writes."""
    return frozenset(record.item for record in golden if record.kind == "generation")


def reached_answers(trial: TrialRecord, items: frozenset[str]) -> tuple[ItemRecord, ...]:
    """Those of a trial's records of `items` that its faults reached."""
    return tuple(item for item in trial.items if item.item in items and item.outcome != "unreached")


def generated_trial(executor: ReferenceExecutor, plan: Plan, trial: Trial) -> GeneratedTrial:
    """Decode the answers of a trial under its faults: in the study's batches, and in batches of another size.

    Either way the faults strike the same tokens of the same items, since places are counted within an item.
    """
    items = []
    for batch in (plan.batches[number] for number in trial.batches):
        if not batch.generates:
            continue
        faults = armed(plan.model, trial.faults)
        golden = executor.golden(batch, faults).items
        whole = _answers(executor, batch, faults)
        parts = [answer for part in reshaped(batch) for answer in _answers(executor, part, faults)]
        items += [
            GeneratedItem(
                item=item.id,
                whole=_compared(item, clean.answer, answer),
                reshaped=_compared(item, clean.answer, other),
            )
            # A single item stands twice in its other shape.
            for item, clean, answer, other in zip(batch.items, golden, whole, parts[: len(whole)], strict=True)
        ]
    return GeneratedTrial(trial=trial.number, items=tuple(items))


def _answers(executor: ReferenceExecutor, batch: Batch, faults: tuple[Fault, ...]) -> tuple[Answer | None, ...]:
    """The decoded answers, None for all of them where the model failed under the faults."""
    try:
        decoded = executor.decoded(batch, faults)
    except ModelCrashedError:
        return (None,) * len(batch.items)
    return tuple(
        judge(item, (RowResult(tokens, (), finite),), executor.model.tokenizer)
        for item, tokens, finite in zip(batch.items, decoded.tokens, decoded.finite, strict=True)
    )


def _compared(item: Item, golden: Answer, answer: Answer | None) -> GeneratedAnswer:
    if answer is None:
        return GeneratedAnswer(outcome="crash", output=None)
    output = None if answer.output == golden.output else answer.output
    return GeneratedAnswer(outcome=classify(item, golden, answer), output=output)
