"""Is the fault-free model as good as published? `python -m benchmarks.golden_accuracy --json`.

Accuracy on 500 items each of ARC (easy, challenge), PIQA and HellaSwag, on 1,000 of LAMBADA, and the perplexity of
the WikiText-2 test text, by plain teacher-forced passes. `--data` is the folder with the task files. The published
figures are those of the model cards of SmolLM2-135M-Instruct and SmolLM2-135M (zero-shot, whole test sets).
"""

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import accumulate, groupby
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from aftershock.models import LoadedModel, load
from aftershock.tasks import Answer, Item, Row, RowResult, encode, judge, load_task, perplexity, windows
from benchmarks.arguments import parser

TOKENS_PER_BATCH = 2048
WINDOW = 2048
TASKS = {
    "arc_easy": "mc/arc_easy_500.jsonl",
    "arc_challenge": "mc/arc_challenge_500.jsonl",
    "piqa": "mc/piqa_500.jsonl",
    "hellaswag": "mc/hellaswag_500.jsonl",
    "lambada": "lm/lambada_openai_1000.jsonl",
}
WIKITEXT = "wikitext2"
TEXT = "lm/wikitext2_test.raw.txt"


@dataclass(frozen=True)
class Published:
    """A published figure in percent; ours, on a sample and on 4-bit weights, should lie within `tolerance`."""

    value: float
    tolerance: float = 6.0
    """Points: two standard errors of 500 items (4.4) and the rest for 4-bit weights and prompt wording."""


PUBLISHED = {
    "demo:smollm2-135m": {
        "piqa_acc_norm": Published(66.3),
        "arc_average_acc_norm": Published(37.3),
        "hellaswag_acc_norm": Published(40.9),
    }
}


def main() -> None:
    """Measure, print, and end with one JSON object on the last line."""
    options = parser(__doc__, "40 items a task and 8 windows of text")
    options.add_argument("--model", default="demo:smollm2-135m")
    options.add_argument("--data", type=Path, default=Path("shared/data"))
    options.add_argument("--tasks", nargs="+", choices=[*TASKS, WIKITEXT], default=[*TASKS, WIKITEXT])
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--device", default="cpu")
    arguments = options.parse_args()

    started = time.perf_counter()
    model = load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    figures: dict[str, dict[str, float]] = {}
    for name in filter(TASKS.get, arguments.tasks):
        items = load_task(str(arguments.data / TASKS[name]), 40 if arguments.quick else None).items
        figures |= task_figures(name, items, model)
        if not arguments.json:
            print({key: value for key, value in figures.items() if key.startswith(name)}, flush=True)
    if {"arc_easy", "arc_challenge"} <= set(arguments.tasks):
        figures["arc_average_acc_norm"] = mean_of(figures["arc_easy_acc_norm"], figures["arc_challenge_acc_norm"])
    if WIKITEXT in arguments.tasks:
        text = (arguments.data / TEXT).read_text(encoding="utf-8")
        rows = windows(text, model.tokenizer, WINDOW)[: 8 if arguments.quick else None]
        figures["wikitext2_perplexity"] = {
            "value": perplexity(run_rows(rows, model)),
            "n": sum(len(row.continuation) for row in rows),
        }
    report = {
        "benchmark": "golden_accuracy",
        "what": "fault-free accuracy (percent) and WikiText-2 test perplexity per token",
        "model": arguments.model,
        "dtype": arguments.dtype,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "date": time.strftime("%Y-%m-%d"),
        "quick": arguments.quick,
        "window_tokens": WINDOW,
        "seconds": round(time.perf_counter() - started, 1),
        "figures": figures,
        "checks": checks(figures, arguments.model),
    }
    print(json.dumps(report))


def task_figures(name: str, items: tuple[Item, ...], model: LoadedModel) -> dict[str, dict[str, float]]:
    """Accuracy of one task; of choices also the accuracy by log-likelihood per character (`acc_norm`)."""
    encoded = [encode(item, model.tokenizer) for item in items]
    results = iter(run_rows(tuple(row for rows in encoded for row in rows), model))
    runs = [(item, tuple(next(results) for _ in rows)) for item, rows in zip(items, encoded, strict=True)]

    figures = {f"{name}_acc": share([judge(item, run, model.tokenizer) for item, run in runs])}
    if items[0].kind == "choice":
        normalised = [(replace(item, length_normalised=True), run) for item, run in runs]
        figures[f"{name}_acc_norm"] = share([judge(item, run, model.tokenizer) for item, run in normalised])
    return figures


def share(answers: list[Answer]) -> dict[str, float]:
    """Percent of right answers with its standard error."""
    right = sum(answer.right is True for answer in answers) / len(answers)
    error = 100 * sqrt(right * (1 - right) / len(answers))
    return {"value": round(100 * right, 2), "standard_error": round(error, 2), "n": len(answers)}


def mean_of(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Mean of two independent percentages."""
    return {
        "value": round((one["value"] + other["value"]) / 2, 2),
        "standard_error": round(sqrt(one["standard_error"] ** 2 + other["standard_error"] ** 2) / 2, 2),
        "n": one["n"] + other["n"],
    }


def checks(figures: dict[str, dict[str, float]], model: str) -> list[dict[str, Any]]:
    """Each figure with a published counterpart beside it."""
    return [
        {
            "name": f"{name}, published {published.value}",
            "value": figures[name]["value"],
            "target": f"within {published.tolerance} of {published.value}",
            "unit": "percent",
            "met": abs(figures[name]["value"] - published.value) <= published.tolerance,
        }
        for name, published in PUBLISHED.get(model, {}).items()
        if name in figures
    ]


def run_rows(rows: tuple[Row, ...], model: LoadedModel) -> tuple[RowResult, ...]:
    """Teacher-forced results in the order of the rows, computed in batches of similar length."""
    order = sorted(range(len(rows)), key=lambda place: length(rows[place]))
    results: dict[int, RowResult] = {}
    for places in batches(order, rows):
        results |= zip(places, run_batch([rows[place] for place in places], model), strict=True)
    return tuple(results[place] for place in range(len(rows)))


def length(row: Row) -> int:
    """Tokens of a row."""
    return len(row.context) + len(row.continuation)


def batches(order: list[int], rows: tuple[Row, ...]) -> Iterator[list[int]]:
    """The places cut into runs of about `TOKENS_PER_BATCH` tokens; `order` ascends in length."""
    ends = accumulate(length(rows[place]) for place in order)
    for _, run in groupby(zip(ends, order, strict=True), key=lambda pair: pair[0] // TOKENS_PER_BATCH):
        yield [place for _, place in run]


@torch.inference_mode()
def run_batch(rows: list[Row], model: LoadedModel) -> list[RowResult]:
    """One pass; padding stands on the right, where a causal model's real tokens can't see it."""
    sequences = [torch.tensor(row.context + row.continuation) for row in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)
    logits = model.module(tokens, use_cache=False).logits
    results = []
    for row, scores in zip(rows, logits, strict=True):
        predicted = scores[len(row.context) - 1 : length(row) - 1].float()
        chosen = torch.tensor(row.continuation, device=model.device)[:, None]
        logprobs = predicted.log_softmax(-1).gather(1, chosen)[:, 0]
        finite = bool(predicted.isfinite().all())
        results.append(RowResult(tuple(predicted.argmax(-1).tolist()), tuple(logprobs.tolist()), finite))
    return results


if __name__ == "__main__":
    main()
