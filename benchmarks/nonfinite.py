"""Bit errors in every weight: how often is a weight NaN, how often the output, and do the formulas say so?

    python -m benchmarks.nonfinite --json [--quick] [--model SPEC]

Every stored bit of a model's weights flips on its own at some rate. In each format, at each rate, copies of the
weights are corrupted (exact words, only those that flips strike are looked at) and compared with what
`nonfinite_chance` says of the fields of the real weights; the formula of Morumpalle et al. (2024), section 6.1,
stands beside. Then corrupted models really run on a few prompts: an output counts as not finite where some logit of
the last token is not. An output has no content where all its logits are the same. fp8 words are those of the
projections in decoder layers, one scale a row, which is not struck; other formats hold every parameter.

The parameter count comes back from the copies with a NaN among their weights (by the real fields), and, as in the
paper's attack, from the outputs that are not finite (by the paper's formula).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aftershock.models import LoadedModel, load, model_hash
from aftershock.numerics import FORMATS, field_counts, generator, words
from aftershock.stats import (
    Estimate,
    NonFinite,
    exact,
    nonfinite_chance,
    parameters_from_nan,
    published_nan_chance,
)
from aftershock.tasks import probe_items
from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.flips import Memory, corrupted, flipped, fp8_memory, memory_of

RATES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
FP8 = ("fp8_e4m3", "fp8_e5m2")
PROMPTS, TOKENS = 2, 12
CONFIDENCE = 1 - 0.05 / (4 * len(RATES) * (len(FORMATS) + len(FP8)))
"""Of each interval that a prediction must lie in, so that all of them hold with 95 %."""


def monte_carlo(memory: Memory, rate: float, copies: int, random: np.random.Generator) -> dict[str, Estimate]:
    """Shares of parameters, and of copies with some, that are NaN, and that are not finite."""
    struck = flipped(memory, rate, copies, random)
    order = np.argsort(struck.place, kind="stable")
    nan, lost = (np.zeros(order.size, dtype=bool) for _ in range(2))
    for part, which, inside in memory.split(struck.place[order]):
        values = corrupted(part.words[inside], struck.mask[order[which]]).view(memory.number.dtype).float()
        nan[order[which]], lost[order[which]] = values.isnan().numpy(), (~values.isfinite()).numpy()
    size = int(memory.ends[-1])
    return {
        "parameter_nan": exact(int(nan.sum()), size * copies, CONFIDENCE),
        "parameter": exact(int(lost.sum()), size * copies, CONFIDENCE),
        "any_nan": exact(np.unique(struck.copy[nan]).size, copies, CONFIDENCE),
        "any": exact(np.unique(struck.copy[lost]).size, copies, CONFIDENCE),
    }


def predictor(memory: Memory) -> Callable[[float], NonFinite]:
    """The chances at a rate, from the real weights' fields; of 8-bit words from how often each of the 256 is there."""
    number = memory.number
    if number.bits > 8:
        fields = sum(field_counts(part.live) for part in memory.parts)
        assert isinstance(fields, torch.Tensor)
        counts = fields.numpy()
        return lambda rate: nonfinite_chance(counts, rate)
    there = np.bincount(np.concatenate([part.words.numpy() for part in memory.parts]), minlength=256)
    values = torch.arange(256, dtype=torch.uint8).view(number.dtype).float()
    codes = np.arange(256)
    apart = np.bitwise_count(codes[:, None] ^ codes)

    def chances(rate: float) -> NonFinite:
        becomes = rate**apart * (1.0 - rate) ** (8 - apart)
        nan, lost = becomes[:, values.isnan().numpy()].sum(axis=1), becomes[:, ~values.isfinite().numpy()].sum(axis=1)
        return NonFinite(
            *(float(there @ one / there.sum()) for one in (nan, lost)), *(_some(there, one) for one in (nan, lost))
        )

    return chances


def _some(there: npt.NDArray[np.intp], chances: npt.NDArray[np.float64]) -> float:
    return float(-np.expm1(there @ np.log1p(-chances)))


def prompts(model: LoadedModel) -> torch.Tensor:
    """Token ids of the beginnings of a few prompts, shape (PROMPTS, TOKENS)."""
    texts = (item.contexts[0] for item in probe_items() if item.kind == "generation")
    ids = (model.tokenizer(text)["input_ids"][:TOKENS] for text in texts)
    return torch.tensor([one for one in ids if len(one) == TOKENS][:PROMPTS])


def outputs(
    model: LoadedModel, memory: Memory, rate: float, copies: int, random: np.random.Generator
) -> dict[str, Estimate]:
    """Shares of corrupted models of which some output is not finite, and of which all are but some has only one value:
    a norm whose mean square overflows makes zeros of everything. Every word is put back."""
    struck, ids, lost, empty = flipped(memory, rate, copies, random), prompts(model), 0, 0
    for copy in range(copies):
        own = struck.copy == copy
        mask, kept = struck.mask[own], []
        for part, which, inside in memory.split(struck.place[own]):
            kept.append((part, inside, words(part.live)[inside].clone()))
            part.write(inside, corrupted(part.words[inside], mask[which]), memory.number)
        with torch.inference_mode():
            logits = model.module(input_ids=ids, logits_to_keep=1).logits
        finite = bool(logits.isfinite().all())
        lost += not finite
        empty += finite and bool((logits.amax(-1) == logits.amin(-1)).any())
        for part, inside, before in kept:
            words(part.live)[inside] = before
    return {"not_finite": exact(lost, copies), "one_value": exact(empty, copies)}


def cells(spec: str, copies: int, runs: int) -> Iterator[dict[str, Any]]:
    """One row for each format and rate."""
    for name in (*(number.name for number in FORMATS), *FP8):
        packed = name in FP8
        model = load(spec, "bfloat16", storage=name) if packed else load(spec, name)
        before, memory = model_hash(model.module), fp8_memory(model) if packed else memory_of(model)
        chances, parameters = predictor(memory), int(memory.ends[-1])
        for index, rate in enumerate(RATES):
            found = monte_carlo(memory, rate, copies, generator(0, index, f"copies {name}"))
            reached = outputs(model, memory, rate, runs, generator(0, index, f"outputs {name}"))
            yield {
                "format": name,
                "rate": rate,
                "parameters": parameters,
                "copies": copies,
                "predicted": asdict(chances(rate)),
                "measured": {figure: asdict(one) for figure, one in found.items()},
                "published_any_nan": published_nan_chance(parameters, rate),
                "runs": runs,
                "output": {figure: asdict(one) for figure, one in reached.items()},
                "parameters_from_output": asdict(
                    parameters_from_nan(
                        round(reached["not_finite"].estimate * runs), runs, published_nan_chance(1, rate)
                    )
                ),
                "undone": model_hash(model.module) == before if rate == RATES[-1] else None,
            }


def inverse(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The number of parameters of each format's model, from the copies with a NaN at the rate that tells most of it:
    the one that makes closest to 1.6 parameters of a copy NaN."""
    for name in dict.fromkeys(row["format"] for row in rows):
        own = [row for row in rows if row["format"] == name]
        row = min(own, key=lambda one: abs(np.log(one["parameters"] * one["predicted"]["parameter_nan"] / 1.6)))
        copies, confidence = row["copies"], 1 - 0.05 / (len(FORMATS) + len(FP8))
        nan = round(row["measured"]["any_nan"]["estimate"] * copies)
        found = parameters_from_nan(nan, copies, row["predicted"]["parameter_nan"], confidence)
        yield {
            "format": name,
            "rate": row["rate"],
            "nan_copies": nan,
            "copies": copies,
            "true": row["parameters"],
            "estimated": asdict(found),
            "confidence": confidence,
        }


def checks(rows: list[dict[str, Any]], counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the run set out to reach."""
    outside = sum(
        not one["low"] <= row["predicted"][figure] <= one["high"]
        for row in rows
        for figure, one in row["measured"].items()
    )
    within = sum(one["estimated"]["low"] <= one["true"] <= one["estimated"]["high"] for one in counts)
    changed = sum(row["undone"] is False for row in rows)
    return [
        _check("predicted chances outside the measured intervals (95 % for all together)", outside, 0, "chances"),
        _check("formats whose parameter count comes back (95 % for all together)", within, len(counts), "formats"),
        _check("models that were not put back to the word", changed, 0, "models"),
    ]


def _check(name: str, value: int, target: int, unit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "unit": unit, "met": value == target}


def main() -> None:
    """Print one JSON object on the last line."""
    options = parser(__doc__, "200 corrupted copies and 8 runs a rate instead of 1000 and 100")
    options.add_argument("--model", default="demo:smollm2-135m")
    arguments = options.parse_args()
    rows = []
    for row in cells(arguments.model, *((200, 8) if arguments.quick else (1000, 100))):
        rows.append(row)
        if not arguments.json:
            print(row, flush=True)
    counts = list(inverse(rows))
    print(
        json.dumps(
            {
                "benchmark": "nonfinite",
                "model": arguments.model,
                "device": "cpu",
                **environment(),
                "n": len(rows),
                "interval_confidence": CONFIDENCE,
                "cells": _plain(rows),
                "parameter_counts": _plain(counts),
                "checks": checks(rows, counts),
            }
        )
    )


def _plain(value: Any) -> Any:
    """The same without infinities, which JSON has none of: `Infinity` in their place."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return "Infinity" if value == float("inf") else value


if __name__ == "__main__":
    main()
