"""The noise floor: perturbations that mean nothing, and what they change."""

from collections.abc import Sequence
from dataclasses import replace

from aftershock.faults import Selection, format_faults, sample_faults, select
from aftershock.replay import Batch, Distance, Executor, ItemRun, ReferenceExecutor, distance
from aftershock.study.plan import Plan
from aftershock.study.records import ItemRecord, NoiseRecord
from aftershock.study.trial import compare_item

NOISE_INDEX = 2**32
"""Noise perturbations draw from here on, so that they never repeat a trial's own draws."""


def noise_record(plan: Plan, executor: Executor, number: int) -> NoiseRecord:
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
    golden, trial = executor.golden(batch, faults).items, executor.trial(batch, faults).items
    items = _compared(batch, golden, trial, [run.apart for run in trial])
    return NoiseRecord(sweep=sweep, perturbation=format_faults(faults), items=items)


def reshaped(batch: Batch) -> tuple[Batch, ...]:
    """The same items in batches of another size: two halves; a single item, beside a copy of itself."""
    half = (len(batch.items) + 1) // 2
    if len(batch.items) == 1:
        return (replace(batch, items=batch.items * 2, rows=batch.rows * 2),)
    parts = (slice(None, half), slice(half, None))
    return tuple(replace(batch, items=batch.items[part], rows=batch.rows[part]) for part in parts)


def _other_shape(plan: Plan, executor: Executor, batch: Batch) -> tuple[ItemRecord, ...]:
    # A reshaped batch keeps its number, so each gets an executor of its own.
    runs = [run for one in reshaped(batch) for run in ReferenceExecutor(plan.model).golden(one).items]
    golden = executor.golden(batch).items
    found = runs[: len(batch.items)]
    return _compared(batch, golden, found, [distance(one, other) for one, other in zip(golden, found, strict=True)])


def _compared(
    batch: Batch, golden: Sequence[ItemRun], other: Sequence[ItemRun], apart: Sequence[Distance | None]
) -> tuple[ItemRecord, ...]:
    return tuple(
        compare_item(item, clean, run, reached=True, apart=one)
        for item, clean, run, one in zip(batch.items, golden, other, apart, strict=True)
    )
