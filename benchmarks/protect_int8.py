"""The same faults where a component is computed in integers: in the int8 word, or the int32 sum, at the same place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from aftershock.faults import ActivationSite, Fault, Flip, WeightSite
from aftershock.models import LoadedModel
from aftershock.numerics import format_of
from aftershock.protect import protect, protected_records
from aftershock.replay import ReferenceExecutor
from aftershock.study import Trial, TrialRecord
from aftershock.study.trial import compare_item
from benchmarks.protect_parts import Drawn
from benchmarks.protect_schemes import INT8

WORD, SUM = 8, 32


def int8_records(drawn: Drawn, trials: Sequence[Trial]) -> Iterator[TrialRecord]:
    """Trials of single flips in projections that `INT8` computes in integers. An output's flip strikes the int32 sum of
    the same token and channel in the bit as far from the top; a weight's the int8 word in the bit of that number,
    counted round."""
    if drawn.part.site == "weight":
        yield from _struck_words(drawn, trials)
    else:
        yield from protected_records(drawn.plan, [_in_sums(trial, drawn.plan.model) for trial in trials], INT8)


def _in_sums(trial: Trial, model: LoadedModel) -> Trial:
    (fault,) = trial.faults
    assert isinstance(fault.site, ActivationSite)
    assert isinstance(fault.corruption, Flip)
    more = SUM - format_of(model.dtype).bits
    site = ActivationSite(f"{fault.site.module}.accumulator", fault.site.channel)
    bits = tuple(bit + more for bit in fault.corruption.bits)
    return replace(trial, faults=(Fault(site, Flip(bits), fault.trigger),))


def _struck_words(drawn: Drawn, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
    plan = drawn.plan
    with protect(plan.model, INT8) as protected:
        golden = ReferenceExecutor(protected.model)
        for trial in trials:
            (fault,), (number,) = trial.faults, trial.batches
            batch = plan.batches[number]
            clean = golden.golden(batch).items
            with _flipped(protected.model, fault):
                # Each has golden runs of its own: here that of a model whose word is wrong.
                found = ReferenceExecutor(protected.model).golden(batch).items
            pairs = zip(batch.items, clean, found, strict=True)
            items = tuple(compare_item(item, one, other, True, None) for item, one, other in pairs)
            yield TrialRecord(
                trial=trial.number,
                faults=(str(fault),),
                fault_count=1,
                site="weight",
                component="down",
                layer=None,
                bits=(),
                bit_class="integer",
                stage="always",
                strikes=(),
                strikes_digest="",
                items=items,
            )


@contextmanager
def _flipped(model: LoadedModel, fault: Fault) -> Iterator[None]:
    assert isinstance(fault.site, WeightSite)
    assert isinstance(fault.corruption, Flip)
    weight = model.module.get_submodule(fault.site.parameter.removesuffix(".weight")).get_buffer("weight")
    (bit,) = fault.corruption.bits
    mask = torch.tensor(1 << bit % WORD, dtype=torch.uint8).view(torch.int8).to(weight.device)
    weight[fault.site.index] ^= mask
    try:
        yield
    finally:
        weight[fault.site.index] ^= mask
