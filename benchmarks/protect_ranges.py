"""Do range guards touch clean values? Bounds seen on one text, held against all others; and FT2's first-token bounds.

    python -m benchmarks.protect_ranges --bounds-from FILE --texts FILE... --json [--quick] [--lines FILE]
        [--model SPEC] [--dtype NAME] [--device NAME] [--margin SHARE] [--bound-tokens N] [--rows N] [--seconds S]

Bounds of every product are the smallest and largest value on the first tokens of `--bounds-from`, widened on either
side by `--margin` times their distance, chosen before any other text was seen. On every other text guards count the
values outside, and its own smallest and largest values say which margin would hold all. FT2's bounds are set by the
first tokens of each window (one pass) times 1 and 2, and held against the rest of it (a second pass, as decoding that
text would give it); clamped, the choices that become others are counted. `--lines` keeps one JSON object a step as it
comes; what it holds already is not run again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from aftershock.models import LoadedModel, load
from aftershock.protect import Counts, FirstTokenBounds, RangeGuard, observe_bounds, protect
from aftershock.protect.observed import widened
from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.false_alarms import LENGTH, text_of, windows
from benchmarks.protect_parts import BOUND_TOKENS, MARGIN
from benchmarks.recorded import Lines

HELD_OUT, FIRST_TOKEN = 10**6, 10**5
"""Token positions that the two parts are to cover."""

PROMPT = 64
"""Tokens of a window whose pass sets FT2's bounds."""

FACTORS = (1.0, 2.0)
SLICE = 8
"""Windows of one step; steps take texts in turn."""

Ranges = dict[str, tuple[float, float]]


def needed_margin(bounds: Ranges, found: Ranges) -> tuple[float, str]:
    """The margin by which `bounds` would hold what was `found`, and the module that needs it."""
    needs = {
        name: max(bounds[name][0] - low, high - bounds[name][1]) / (bounds[name][1] - bounds[name][0])
        for name, (low, high) in found.items()
    }
    worst = max(needs, key=needs.__getitem__)
    return needs[worst], worst


def outside(report: Sequence[Counts], protections: int) -> list[int]:
    """Values that each of several protections of one kind counted, which stand at the same sites in turn."""
    size = len(report) // protections
    return [sum(one.wrong for one in report[start : start + size]) for start in range(0, len(report), size)]


def seen_bounds(model: LoadedModel, ids: torch.Tensor, rows: int) -> dict[str, Any]:
    """The bounds of all products on a text."""
    return {"tokens": ids.numel(), "bounds": observe_bounds(model, torch.split(ids, rows))}


def held_out(model: LoadedModel, ids: torch.Tensor, rows: int, bounds: Ranges, margin: float) -> dict[str, Any]:
    """Clean values of a text that guards find outside bounds with a margin, and the margin that would hold all."""
    # Guards that only count change nothing, so the same passes tell what was there.
    with protect(model, [RangeGuard(widened(bounds, margin), limit="count")]) as protected:
        found = observe_bounds(protected.model, torch.split(ids, rows))
        beyond = sum(one.wrong for one in protected.report())
    need, module = needed_margin(bounds, found)
    return {"tokens": ids.numel(), "outside": beyond, "needed_margin": need, "module": module}


@torch.inference_mode()
def choices(model: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    """The likeliest next token at every position after the prompt, int64 (rows, LENGTH - PROMPT), in two passes."""
    cache = DynamicCache(config=model.module.config)
    model.module(input_ids=ids[:, :PROMPT], past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = model.module(input_ids=ids[:, PROMPT:], past_key_values=cache, use_cache=True).logits
    return logits.argmax(-1)


def first_token(model: LoadedModel, ids: torch.Tensor) -> dict[str, Any]:
    """What FT2's bounds do to a clean text, each window a generation of its own."""
    counting = [FirstTokenBounds(factor=factor, limit="count") for factor in FACTORS]
    alone = torch.split(ids.to(model.device), 1)
    with protect(model, counting) as protected:
        clean = [choices(protected.model, one) for one in alone]
        report = protected.report()
    with protect(model, [FirstTokenBounds(factor=FACTORS[-1])]) as protected:
        clamped = [choices(protected.model, one) for one in alone]
    changed = sum(int((one != other).sum()) for one, other in zip(clean, clamped, strict=True))
    return {
        "tokens": sum(one.numel() for one in clean),
        "windows": len(alone),
        "values": sum(one.checked for one in report) // len(counting),
        "outside": dict(zip(map(str, FACTORS), outside(report, len(counting)), strict=True)),
        "choices_changed": changed,
    }


def steps(texts: dict[str, torch.Tensor]) -> Iterator[tuple[str, int, torch.Tensor]]:
    """The windows of every step, text after text in turn, with the text's name and the step's number in it."""
    parts = [(name, torch.split(ids, SLICE)) for name, ids in texts.items()]
    for number in range(max(len(own) for _, own in parts)):
        yield from ((name, number, own[number]) for name, own in parts if number < len(own))


def measure(model: LoadedModel, asked: argparse.Namespace, lines: Lines) -> None:
    """Run every step that is not recorded yet."""

    def step(part: str, source: str, number: int, run: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        key = {"part": part, "text": source, "slice": number}
        return lines.get(key, lambda: {"margin": asked.margin, **timed(run, model, *given)})

    def ids_of(path: Path, tokens: int) -> torch.Tensor:
        return windows(model, text_of([path]), tokens)

    end = time.monotonic() + asked.seconds
    own = ids_of(asked.bounds_from, asked.bound_tokens)
    bounds = step("bounds", asked.bounds_from.name, 0, seen_bounds, own, asked.rows)["bounds"]
    wanted = asked.first_token
    most = 4 * LENGTH if asked.quick else 10**9
    texts = {path.name: ids for path in asked.texts if len(ids := ids_of(path, most))}
    for name, number, some in steps(texts):
        if time.monotonic() > end:
            break
        step("held out", name, number, held_out, some, asked.rows, bounds, asked.margin)
        if wanted > 0:
            wanted -= step("first token", name, number, first_token, some)["tokens"]


def timed(run: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """A record, with the seconds it took."""
    begin = time.monotonic()
    return {**run(*given), "seconds": round(time.monotonic() - begin, 1)}


def figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all steps came to."""
    clean = [one for one in records if one["part"] == "held out"]
    first = [one for one in records if one["part"] == "first token"]
    seen = next(one for one in records if one["part"] == "bounds")
    worst = max(clean, key=lambda one: one["needed_margin"])
    return {
        "bounds": {"text": seen["text"], "tokens": seen["tokens"], "margin": seen["margin"]},
        "held_out": {
            **{name: sum(one[name] for one in clean) for name in ("tokens", "outside")},
            "needed_margin": worst["needed_margin"],
            "needed_by": f"{worst['module']} on {worst['text']}",
            "texts": len({one["text"] for one in clean}),
        },
        "first_token": {
            **{name: sum(one[name] for one in first) for name in ("tokens", "windows", "values", "choices_changed")},
            "clamped": {name: sum(one["outside"][name] for one in first) for name in map(str, FACTORS)},
        },
    }


def checks(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run set out to reach."""
    clean, first = found["held_out"], found["first_token"]
    rows: list[tuple[str, int, int, bool]] = [
        ("clean values outside the guards' bounds", clean["outside"], 0, clean["outside"] == 0),
        ("held-out token positions", clean["tokens"], HELD_OUT, clean["tokens"] >= HELD_OUT),
        ("token positions under first-token bounds", first["tokens"], FIRST_TOKEN, first["tokens"] >= FIRST_TOKEN),
    ]
    return [{"name": name, "value": value, "target": target, "met": met} for name, value, target, met in rows]


def main() -> None:
    """Print one JSON object on the last line."""
    made = parser(__doc__, "2,048 tokens a text")
    made.add_argument("--bounds-from", type=Path, required=True, help="the text whose values set the bounds")
    made.add_argument("--texts", nargs="+", type=Path, required=True, help="texts to hold against them")
    made.add_argument("--model", default="demo:smollm2-135m")
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--device", default="cpu")
    made.add_argument("--margin", type=float, default=MARGIN)
    made.add_argument("--bound-tokens", type=int, default=BOUND_TOKENS)
    made.add_argument("--first-token", type=int, default=FIRST_TOKEN, help="positions under FT2's bounds")
    made.add_argument("--seconds", type=float, default=float("inf"), help="no step begins after so long")
    made.add_argument("--rows", type=int, default=2, help=f"windows of {LENGTH} tokens in one pass")
    made.add_argument("--lines", type=Path, help="a file of what was measured before, added to")
    asked = made.parse_args()
    lines = Lines(asked.lines, ("part", "text", "slice"))
    measure(load(asked.model, asked.dtype, device=asked.device), asked, lines)
    found = figures(lines.records)
    print(
        json.dumps(
            {
                "benchmark": "protect_ranges",
                "what": "clean values that range guards and first-token bounds would touch",
                **environment(),
                "model": asked.model,
                "dtype": asked.dtype,
                "device": asked.device,
                "quick": asked.quick,
                "n": found["held_out"]["tokens"],
                "figures": found,
                "checks": checks(found),
            }
        )
    )


if __name__ == "__main__":
    main()
