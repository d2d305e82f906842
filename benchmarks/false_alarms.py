"""Do clean products of real activations ever look wrong, and how close to the threshold do they come?

    python -m benchmarks.false_alarms --texts FILE... --json [--quick] [--models SPEC...] [--dtypes NAME...]
        [--device cpu] [--tokens N] [--rows N]

Text (whole .txt files, strings of .jsonl files) runs through each model in each dtype; every row that a linear layer
gives, `lm_head` included, is checked against the checksum of its weight. Each run has a part of the text of its own, so
no position counts twice. Printed of each: rows checked, positions, alarms, rows where the model itself overflowed
(counted apart), the largest |D| / T, its 1 - 1e-6 quantile (of a histogram of |D| / T in steps of 0.001), and the
largest by component.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from aftershock.detect import LinearChecksum, Rounding, check_rows, linear_checksum, rounding_of
from aftershock.errors import InputError
from aftershock.models import LoadedModel, load
from benchmarks.arguments import parser
from benchmarks.environment import environment

MODELS = ("demo:smollm2-135m", "demo:gemma3-270m")
LENGTH = 512
STEPS = 1000
QUANTILE = 1 - 1e-6
TIGHT = 0.1


@dataclass
class Tally:
    """Counts of |D| / T on the model's device: `counts`, int64 of shape (STEPS + 1,), the last for 1 and above, and of
    rows whose own values are not finite, 0-d: there the model overflowed, and an alarm is right."""

    counts: torch.Tensor
    alarms: torch.Tensor
    not_finite: torch.Tensor
    largest: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, component: str, ratio: torch.Tensor, wrong: torch.Tensor) -> None:
        """Count rows' `ratio`, fp32, and those that are `wrong`."""
        finite = ratio.isfinite()
        self.not_finite += (~finite).sum()
        self.alarms += (wrong & finite).sum()
        known = torch.where(finite, ratio, 0.0)
        steps = (known.flatten() * STEPS).clamp(0, STEPS).long()
        self.counts.index_add_(0, steps, finite.flatten().long())
        top = known.max()
        self.largest[component] = torch.maximum(self.largest[component], top) if component in self.largest else top


@dataclass(frozen=True)
class Clean:
    """What clean rows of one model in one dtype showed."""

    model: str
    dtype: str
    device: str
    rows: int
    tokens: int
    alarms: int
    not_finite: int
    largest: float
    quantile: float
    by_component: dict[str, float]
    seconds: float


def text_of(paths: Sequence[Path]) -> str:
    """The files' text, one after the other. Raises InputError where one can't be read."""
    parts: list[str] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}): name files of text") from error
        parts.extend(_lines(text) if path.suffix == ".jsonl" else [text])
    return "\n".join(parts)


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield "\n".join(_strings(json.loads(line)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def windows(model: LoadedModel, text: str, tokens: int) -> torch.Tensor:
    """Token ids, int64 of shape (windows, LENGTH), no position twice: the text's first `tokens` at most."""
    # A piece at a time: tokenizers take long over one long string.
    pieces = (text[at : at + 100_000] for at in range(0, len(text), 100_000))
    ids: list[int] = []
    for piece in pieces:
        ids.extend(model.tokenizer(piece, add_special_tokens=False)["input_ids"])
        if len(ids) >= tokens:
            break
    whole = min(len(ids), tokens) // LENGTH
    return torch.tensor(ids[: whole * LENGTH]).view(whole, LENGTH)


def watched(module: torch.nn.Module, rounding: Rounding, tally: Tally) -> list[torch.utils.hooks.RemovableHandle]:
    """Check every linear layer's rows as they come."""

    def hook(component: str, checksum: LinearChecksum) -> Callable[..., None]:
        def check(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
            found = check_rows(inputs[0], outputs, checksum, rounding)
            tally.add(component, found.deviation.abs() / found.threshold, found.wrong)

        return check

    return [
        part.register_forward_hook(hook(name.rpartition(".")[2], linear_checksum(part.weight, part.bias)))
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear)
    ]


def run(spec: str, dtype: str, device: str, text: str, tokens: int, rows: int) -> Clean:
    """Check what a model computes of a text, `rows` windows at a time."""
    model = load(spec, dtype, device=device)
    counts, alarms, not_finite = (
        torch.zeros(size, dtype=torch.int64, device=model.device) for size in ((STEPS + 1,), (), ())
    )
    tally = Tally(counts, alarms, not_finite)
    ids = windows(model, text, tokens)
    begin = time.monotonic()
    with torch.inference_mode():
        hooks = watched(model.module, rounding_of(model.dtype, model.device.type), tally)
        try:
            for some in torch.split(ids, rows):
                model.module(input_ids=some.to(model.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return Clean(
        model=Path(spec).name,
        dtype=dtype,
        device=device,
        rows=int(tally.counts.sum()),
        tokens=ids.numel(),
        alarms=int(tally.alarms),
        not_finite=int(tally.not_finite),
        largest=max(float(one) for one in tally.largest.values()),
        quantile=quantile(tally.counts.tolist(), QUANTILE),
        by_component={name: round(float(one), 4) for name, one in tally.largest.items()},
        seconds=round(time.monotonic() - begin, 1),
    )


def quantile(counts: Sequence[int], share: float) -> float:
    """The upper end of the step of |D| / T below which a share of rows lies."""
    left = share * sum(counts)
    for step, count in enumerate(counts):
        left -= count
        if left <= 0:
            return (step + 1) / STEPS
    return float("inf")


def checks(runs: Sequence[Clean]) -> list[dict[str, Any]]:
    """What the run set out to reach."""
    rows, tokens = sum(one.rows for one in runs), sum(one.tokens for one in runs)
    alarms, least = sum(one.alarms for one in runs), min(one.largest for one in runs)
    return [
        {"name": "alarms on clean rows", "value": alarms, "target": 0, "met": alarms == 0},
        {"name": "rows checked", "value": rows, "target": 10**8, "met": rows >= 10**8},
        {"name": "positions of text", "value": tokens, "target": 10**6, "met": tokens >= 10**6},
        {"name": "largest |D| / T, least of all runs", "value": least, "target": TIGHT, "met": least >= TIGHT},
    ]


def options() -> argparse.Namespace:
    """The command's arguments."""
    made = parser(__doc__, "4,096 tokens a run")
    made.add_argument("--texts", nargs="+", type=Path, required=True)
    made.add_argument("--models", nargs="+", default=MODELS)
    made.add_argument("--dtypes", nargs="+", default=("bfloat16", "float16"))
    made.add_argument("--device", default="cpu")
    made.add_argument("--tokens", type=int, default=1_000_000, help="most tokens a run")
    made.add_argument("--rows", type=int, default=4, help=f"windows of {LENGTH} tokens at a time")
    return made.parse_args()


def main() -> None:
    """Print one JSON object on the last line."""
    asked = options()
    text = text_of(asked.texts)
    pairs = [(spec, dtype) for spec in asked.models for dtype in asked.dtypes]
    runs = []
    for number, (spec, dtype) in enumerate(pairs):
        own = text[len(text) * number // len(pairs) : len(text) * (number + 1) // len(pairs)]
        runs.append(run(spec, dtype, asked.device, own, 4096 if asked.quick else asked.tokens, asked.rows))
        if not asked.json:
            print(runs[-1], flush=True)
    print(
        json.dumps(
            {
                "benchmark": "false_alarms",
                **environment(),
                "n": len(runs),
                "sigmas": rounding_of(torch.bfloat16, torch.device(asked.device).type).sigmas,
                "runs": [asdict(one) for one in runs],
                "checks": checks(runs),
            }
        )
    )


if __name__ == "__main__":
    main()
