"""Stored studies with a planted effect: every fault says itself whether it costs its answers. No model is run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftershock.faults import CachedSite, Flip, parse_fault, site_kind
from aftershock.models import stage_of
from aftershock.study import (
    Environment,
    GoldenRecord,
    ItemRecord,
    NoiseRecord,
    StoredStudy,
    TrialRecord,
    check_settings,
)

ITEMS = 4
LAYERS = 12


@dataclass(frozen=True)
class Planted:
    """A fault, its labels, and the outcome of all its answers; `extra` are further fields of its record."""

    line: str
    component: str = "down"
    layer: int | None = 5
    outcome: str = "masked"
    extra: tuple[tuple[str, Any], ...] = ()


def weight(component: str = "down", layer: int = 5, bits: str = "3", trigger: str = "always") -> tuple[str, str, int]:
    """Line, component and layer of a weight fault."""
    return f"weight model.layers.{layer}.mlp.{component}.weight[0,0] flip {bits} {trigger}", component, layer


def activation(trigger: str, component: str = "down", layer: int = 5, bits: str = "3") -> tuple[str, str, int]:
    """Line, component and layer of an activation fault."""
    return f"activation model.layers.{layer}.mlp.{component}[0] flip {bits} {trigger}", component, layer


def cached(layer: int = 5) -> tuple[str, str, int]:
    """Line, component and layer of a cache fault."""
    return f"value model.layers.{layer}.self_attn[0,0] of first_token flip 3 always", "v", layer


def faults(place: tuple[str, str, int], count: int, rate: float, bad: str = "subtle", **extra: Any) -> list[Planted]:
    """So many faults of a place, of which an even share of `rate` has the outcome `bad`."""
    hit = [int((number + 1) * rate) > int(number * rate) for number in range(count)]
    return [Planted(*place, bad if one else "masked", tuple(extra.items())) for one in hit]


def golden_record(number: int, kind: str = "generation", right: bool = True, letter: bool = False) -> GoldenRecord:
    """The fault-free answer to item `number`; choices have four options."""
    options = (" a", " b", " c", " d") if kind == "choice" else ()
    reference = "1" if kind == "choice" else "ABCD"[number % 4] if letter else "blue"
    return GoldenRecord(
        item=f"item-{number}",
        kind=kind,
        group="planted",
        prompt="?",
        options=options,
        output=reference if right else "?",
        reference=reference,
        right=right,
        score=0.0,
        chance=0.25 if kind == "choice" or letter else 0.0,
    )


def item_record(golden: GoldenRecord, outcome: str) -> ItemRecord:
    """An answer under a fault; what golden answers wrong stays wrong."""
    return ItemRecord(
        item=golden.item,
        outcome=outcome,
        eligible=golden.right is not False and outcome != "unreached",
        right=golden.right is True and outcome in ("masked", "benign", "unreached"),
        output=None,
        score_change=0.0,
        first_difference=None,
        rmse=None,
        kl=None,
    )


def study(
    planted: Iterable[Planted],
    golden: Sequence[GoldenRecord] = tuple(map(golden_record, range(ITEMS))),
    model: str = "planted",
    dtype: str = "float32",
    storage: str | None = None,
    **tables: Any,
) -> StoredStudy:
    """A complete study of these faults; `tables` are those of its study file. Its noise floor is zero."""
    planted = tuple(planted)
    answers = {
        outcome: tuple(item_record(one, outcome) for one in golden)
        for outcome in dict.fromkeys(one.outcome for one in planted)
    }
    records = [trial_record(number, one, answers[one.outcome]) for number, one in enumerate(planted)]
    run = {"trials": max(len(records), 1), **tables.pop("run", {})}
    settings = check_settings(
        {"model": {"spec": model, "dtype": dtype, "storage": storage}, "run": run, **tables}, "planted"
    )
    still = tuple(item_record(one, "masked") for one in golden)
    return StoredStudy(
        folder=Path("planted"),
        settings=settings,
        plan_digest="a" * 64,
        environment=Environment(
            model=model,
            architecture="Planted",
            model_hash=model,
            parameters=1,
            layers=LAYERS,
            dtype=dtype,
            device="none",
            threads=1,
            versions={},
        ),
        golden=tuple(golden),
        noise=tuple(NoiseRecord(sweep=sweep, perturbation="nothing", items=still) for sweep in range(3)),
        trials=tuple(records),
        planned=settings.trials,
        aa_disagreements=0,
        audits={},
        generated=(),
        seconds=1.0,
    )


def trial_record(number: int, planted: Planted, answers: tuple[ItemRecord, ...]) -> TrialRecord:
    """The record of a planted fault with these answers, labelled as a study labels it."""
    fault = parse_fault(planted.line)
    if isinstance(fault.site, CachedSite):
        stage = stage_of(fault.site.entry.number)
    else:
        stage = stage_of(fault.trigger.first) if fault.trigger.transient else "persistent"
    kind = site_kind(fault)
    assert isinstance(fault.corruption, Flip)
    record = {
        "trial": number,
        "faults": (planted.line,),
        "fault_count": 1,
        "site": kind,
        "component": planted.component,
        "layer": planted.layer,
        "bits": () if kind == "stored" else fault.corruption.bits,
        "bit_class": "mantissa",
        "stage": stage,
        "strikes": (),
        "strikes_digest": "",
        "items": answers,
    }
    return TrialRecord.model_validate(record | dict(planted.extra))
