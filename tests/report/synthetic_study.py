"""A made-up study, shaped as a real one of a 30-layer model in fp32: no model is needed to test a report."""

from pathlib import Path

import numpy as np

from aftershock.numerics import format_of, generator
from aftershock.study import (
    Environment,
    GeneratedAnswer,
    GeneratedItem,
    GeneratedTrial,
    GoldenRecord,
    ItemRecord,
    NoiseRecord,
    StoredStudy,
    Strike,
    StudySettings,
    TrialRecord,
)

LAYERS = 30
COMPONENTS = ("q", "k", "v", "o", "gate", "up", "down", "norm")
QUESTIONS = (
    ("choice", "english", "Which of these is a fruit?", "1", "1"),
    ("cloze", "french", "La capitale de la France est", " Paris", " Paris"),
    ("generation", "arithmetic", "Tom has 3 apples and buys 4 more. How many?", "He has 7 apples now.", "7"),
    ("generation", "deutsch", "Nenne drei Farben.", "Rot, Grün und Blau.", None),
)
PASSES = {"prefill": "at prefill:0.5", "first_token": "at first_token", "decode": "at decode:2"}
BROKEN = ("the the the the the the the the", "He has 12 apples now.", "<script>alert(1)</script> & so on", "…\u202e|x|")


def golden_records(count: int) -> tuple[GoldenRecord, ...]:
    return tuple(
        GoldenRecord(
            item=f"item-{number:03d}",
            kind=kind,
            group=group,
            prompt=prompt,
            options=(" no", " yes", " perhaps", " never") if kind == "choice" else (),
            output=output,
            reference=reference,
            right=None if reference is None else number % 8 != 1,
            score=0.5,
            chance=0.25 if kind == "choice" else 0.0,
        )
        for number in range(count)
        for kind, group, prompt, output, reference in (QUESTIONS[number % len(QUESTIONS)],)
    )


def item_record(golden: GoldenRecord, outcome: str, random: np.random.Generator) -> ItemRecord:
    changed = outcome in ("benign", "subtle", "distorted")
    broken = str(random.integers(2, 4)) if golden.kind == "choice" else str(random.choice(BROKEN))
    return ItemRecord(
        item=golden.item,
        outcome=outcome,
        eligible=golden.right is not False and outcome != "unreached",
        right=None if golden.right is None or outcome == "crash" else outcome in ("masked", "benign"),
        output=broken if changed else None,
        score_change=-0.3 if changed else 0.0,
        first_difference=1 if changed and golden.kind != "choice" else None,
        rmse=float("nan") if outcome == "non_finite" else float(random.lognormal(-3)),
        kl=float("nan") if outcome == "non_finite" else float(random.lognormal(-6)),
    )


def outcomes(harm: float, count: int, random: np.random.Generator) -> list[str]:
    rest = 1 - harm
    mix = {"masked": 0.92 * rest, "benign": 0.04 * rest, "unreached": 0.04 * rest}
    mix |= {"subtle": 0.45 * harm, "distorted": 0.45 * harm, "non_finite": 0.07 * harm, "crash": 0.03 * harm}
    return [str(outcome) for outcome in random.choice(list(mix), count, p=list(mix.values()))]


def residual_error(layer: int, harm: float, random: np.random.Generator) -> tuple[float, ...]:
    steps = random.normal(0.1, 0.4, LAYERS - layer).cumsum() - 4 + 4 * harm
    grown = [0.0] * (layer + 1) + [float(10**step) for step in steps]
    if harm > 0.9:
        grown[-1] = float("inf")
    return tuple(grown)


def trial_record(number: int, golden: tuple[GoldenRecord, ...], traced: bool) -> TrialRecord:
    random = generator(11, number, "synthetic trials")
    activation = bool(random.integers(2))
    component = "embedding+lm_head" if random.random() < 0.05 and not activation else str(random.choice(COMPONENTS))
    layer = None if component == "embedding+lm_head" else int(random.integers(LAYERS))
    bit = int(random.integers(32))
    stage = str(random.choice(["prefill", "first_token", "decode"])) if activation else "persistent"
    harm = 0.95 * float(random.random() < 0.8) if bit == 30 else (0.05 if bit > 22 else 0.004)
    tensor = "model.embed_tokens" if layer is None else f"model.layers.{layer}.{component}"
    site = "activation" if activation else "weight"
    items = random.choice(len(golden), min(8, len(golden)), replace=False)
    found = outcomes(harm, len(items), random)
    place = f"activation {tensor}[5]" if activation else f"weight {tensor}.weight[3,5]"
    line = f"{place} flip {bit} " + (PASSES[stage] if activation else "always")
    return TrialRecord(
        trial=number,
        faults=(line,),
        fault_count=1,
        site=site,
        component=component,
        layer=layer,
        bits=(bit,),
        bit_class=format_of("float32").bit_class(bit),
        stage=stage,
        strikes=(
            Strike(
                fault=0,
                tensor=tensor,
                index=(3, 5),
                item=None,
                old_bits=1008981770,
                new_bits=1008981770 ^ (1 << bit),
                old_value=0.01,
                new_value=3.4e36 if bit == 30 else 0.0101,
            ),
        ),
        strikes_digest=f"{number:064x}",
        items=tuple(item_record(golden[i], outcome, random) for i, outcome in zip(items, found, strict=True)),
        residual_error=residual_error(layer or 0, harm, random) if traced else None,
    )


def generated_trial(number: int, golden: tuple[GoldenRecord, ...]) -> GeneratedTrial:
    """What plain generate answered to the texts of a trial: mostly what its record says."""
    random = generator(11, number, "synthetic generate")

    def answer(item: ItemRecord) -> GeneratedAnswer:
        if item.outcome == "unreached" or random.random() < 0.05:
            return GeneratedAnswer(outcome="subtle", output="Eight.")
        return GeneratedAnswer(outcome=item.outcome, output=item.output)

    return GeneratedTrial(
        trial=number,
        items=tuple(
            GeneratedItem(item=item.item, whole=answer(item), reshaped=answer(item))
            for item in trial_record(number, golden, False).items
            if golden[int(item.item.removeprefix("item-"))].kind == "generation"
        ),
    )


def study(folder: Path, trials: int = 400, items: int = 48) -> StoredStudy:
    golden = golden_records(items)
    noise_random = generator(11, 0, "synthetic noise")
    return StoredStudy(
        folder=folder,
        settings=StudySettings(),
        plan_digest="a" * 64,
        environment=Environment(
            model="demo:smollm2-135m",
            architecture="LlamaForCausalLM",
            model_hash="c" * 64,
            parameters=134_515_008,
            layers=LAYERS,
            dtype="float32",
            device="x86_64 AVX2",
            threads=2,
            versions={"aftershock": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        ),
        golden=golden,
        noise=tuple(
            NoiseRecord(
                sweep=number,
                perturbation=f"weight model.norm.weight[{number}] flip 0 always",
                items=tuple(
                    item_record(record, outcome, noise_random)
                    for record, outcome in zip(golden, outcomes(0.004, items, noise_random), strict=True)
                ),
            )
            for number in range(5)
        ),
        trials=tuple(trial_record(number, golden, number % 16 == 0) for number in range(trials)),
        planned=trials,
        aa_disagreements=0,
        audits=dict.fromkeys(range(20), True),
        generated=tuple(generated_trial(number, golden) for number in range(0, trials, 5)),
        seconds=212.4,
    )
