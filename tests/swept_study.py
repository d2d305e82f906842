"""Swept studies made up in code, with losses that are planted: no model is needed to test what is made of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aftershock.faults import combinations, sweep_name
from aftershock.numerics import generator
from aftershock.study import Environment, GoldenRecord, ItemRecord, StoredStudy, StudySettings, TrialRecord

LAYERS = 16

Loss = Callable[[Mapping[str, Any]], tuple[float, float]]
"""From the values of a combination: the chance that an answer is lost, and the mean number of faults."""


def swept_study(
    faults: Mapping[str, Any],
    sweep: Mapping[str, Sequence[Any]],
    loss: Loss,
    trials_each: int = 10,
    items: int = 20,
    referenced: bool = True,
) -> StoredStudy:
    """A study in which answers are lost by chance as `loss` says; golden answers all but every fourth right."""
    settings = StudySettings.model_validate(
        {"faults": faults, "sweep": sweep, "run": {"trials": trials_each * int(np.prod([*map(len, sweep.values())]))}}
    )
    golden = tuple(_golden(number, referenced) for number in range(items))
    trials = [
        _trial(values, loss, golden, trials_each * place + number)
        for place, (values, _) in enumerate(combinations(settings.faults, settings.sweep))
        for number in range(trials_each)
    ]
    return StoredStudy(
        folder=Path("swept"),
        settings=settings,
        plan_digest="a" * 64,
        environment=Environment(
            model="made up",
            architecture="LlamaForCausalLM",
            model_hash="c" * 64,
            parameters=1_000_000,
            layers=LAYERS,
            dtype="bfloat16",
            device="cpu",
            threads=1,
            versions={"aftershock": "0.1.0"},
        ),
        golden=golden,
        noise=(),
        trials=tuple(trials),
        planned=len(trials),
        aa_disagreements=0,
        audits={},
        generated=(),
        seconds=1.0,
    )


def _golden(number: int, referenced: bool) -> GoldenRecord:
    return GoldenRecord(
        item=f"item-{number}",
        kind="choice",
        group="made up",
        prompt="?",
        options=("no", "yes"),
        output="1",
        reference="1" if referenced else None,
        right=number % 4 != 1 if referenced else None,
        score=0.5,
        chance=0.0,
    )


def _trial(values: Mapping[str, Any], loss: Loss, golden: Sequence[GoldenRecord], number: int) -> TrialRecord:
    random = generator(7, number, "made-up trials")
    chance, errors = loss(values)
    seen = [golden[place] for place in random.choice(len(golden), len(golden) // 2, replace=False)]
    return TrialRecord(
        trial=number,
        faults=(),
        fault_count=int(random.poisson(errors)),
        site="weight",
        component="several",
        layer=None,
        bits=(),
        bit_class="several",
        stage="persistent",
        strikes=(),
        strikes_digest=f"{number:064x}",
        items=tuple(_item(record, bool(random.random() < chance)) for record in seen),
        stratum=sweep_name(values),
        stratum_chance=0.1,
        round=0,
    )


def _item(golden: GoldenRecord, lost: bool) -> ItemRecord:
    return ItemRecord(
        item=golden.item,
        outcome="subtle" if lost else "masked",
        eligible=golden.right is not False,
        right=None if golden.right is None else golden.right and not lost,
        output="0" if lost else None,
        score_change=0.0,
        first_difference=None,
        rmse=0.0,
        kl=0.0,
    )
