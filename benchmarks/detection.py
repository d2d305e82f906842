"""Which errors do checks of rows see, by the bit that flipped, and how small an error is seen 99 % of the time?

    python -m benchmarks.detection --json [--quick] [--model SPEC] [--dtypes NAME...]

Inputs of some of a model's linear layers on real text. In every row one output is struck (`single`), or every 32nd
from a random one on, as the lanes of a warp lie: in one bit (`strided`), or in that bit and two others (`several`).
Struck are stored outputs, fp32 sums before they are stored, weights (one at a time, seen where any row is wrong), and
int32 sums of the same layers in integers. Sums are checked as they are (`fused`) and once they are stored. Of errors
that were missed, the largest is given in units of the row's root mean square; of values that became NaN or infinite
none may be missed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from aftershock.detect import (
    LinearChecksum,
    Rounding,
    check_rows,
    integer_column_deviations,
    integer_row_deviations,
    linear_checksum,
    rounding_of,
)
from aftershock.models import LoadedModel, load
from aftershock.numerics import format_of, generator, words
from aftershock.tasks import probe_items
from benchmarks.arguments import parser
from benchmarks.detection_checks import checks
from benchmarks.environment import environment

LAYERS = ("layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "layers.15.self_attn.o_proj", "layers.15.mlp.up_proj")
WARP = 32
FEW = 16
PATTERNS = ("single", "strided", "several")
SIZES = np.arange(0.5, 3.0, 0.02)
"""Errors in units of the threshold, among which the smallest that is seen is looked for."""


@dataclass(frozen=True)
class Layer:
    """A linear layer at work: `inputs` (rows, K), `weight` (N, K), `sums` fp32 and `outputs` as stored, (rows, N)."""

    inputs: torch.Tensor
    weight: torch.Tensor
    sums: torch.Tensor
    outputs: torch.Tensor
    checksum: LinearChecksum
    rounding: Rounding


@dataclass
class Seen:
    """Trials of one kind: how many, how many were seen, and the largest error that was not, in the row's rms."""

    trials: int = 0
    seen: int = 0
    largest_missed: float = 0.0

    def add(self, wrong: torch.Tensor, error: torch.Tensor) -> None:
        """`wrong`, bool, and the size of the `error`, fp32, both (trials,); no error at all is no trial."""
        missed = ~wrong & (error > 0)
        self.trials += int((~(error == 0)).sum())
        self.seen += int((wrong & ~(error == 0)).sum())
        self.largest_missed = max(self.largest_missed, float(torch.where(missed, error, 0.0).max()))


def layers_at_work(model: LoadedModel, rows: int) -> list[Layer]:
    """The layers with the first `rows` tokens of the probe's texts."""
    text = "\n".join(item.contexts[0] for item in probe_items())
    ids = torch.tensor([model.tokenizer(text)["input_ids"][:rows]])
    found: list[Layer] = []

    def keep(part: torch.nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
        weight = part.get_parameter("weight").detach()
        values = inputs[0][0]
        sums = torch.nn.functional.linear(values.float(), weight.float())
        rounding = rounding_of(outputs.dtype, outputs.device.type)
        found.append(Layer(values, weight, sums, outputs[0], linear_checksum(weight), rounding))

    chosen = [part for name, part in model.module.named_modules() if name.endswith(LAYERS)]
    hooks = [part.register_forward_hook(keep) for part in chosen]
    try:
        model.module(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def struck(values: torch.Tensor, bit: int, pattern: str, random: np.random.Generator) -> torch.Tensor:
    """A copy in which every row is struck, shape (rows, N)."""
    broken, width = values.clone(), values.element_size() * 8
    own, (rows, columns) = words(broken), values.shape
    masks = np.full((rows, columns), 1 << bit, dtype=np.uint32)
    if pattern == "several":
        for _ in range(2):
            masks |= (1 << random.integers(0, width, (rows, columns))).astype(np.uint32)
    first = random.integers(0, columns if pattern == "single" else WARP, (rows, 1))
    places = np.arange(columns)
    hit = places == first if pattern == "single" else (places - first) % WARP == 0
    signed = np.where(hit, masks, 0).astype(np.uint32 if width == 32 else np.uint16)
    own ^= torch.from_numpy(signed.view(np.int32 if width == 32 else np.int16))
    return broken


def errors(broken: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Each row's largest change in units of its root mean square, fp32; NaN and infinite count as infinite."""
    change = (broken.float() - clean.float()).abs().nan_to_num(torch.inf, torch.inf).amax(-1)
    return change / clean.float().square().mean(-1).sqrt()


def float_trials(layer: Layer, bits: int, random: np.random.Generator) -> Iterator[tuple[str, str, str, int, Any, Any]]:
    """Site, check, pattern and bit, with what was wrong and by how much."""
    dtype = layer.outputs.dtype
    for pattern in PATTERNS:
        for bit in range(bits):
            broken = struck(layer.outputs, bit, pattern, random)
            found = check_rows(layer.inputs, broken, layer.checksum, layer.rounding)
            yield "output", "stored", pattern, bit, found.wrong, errors(broken, layer.outputs)
        for bit in range(32):
            sums = struck(layer.sums, bit, pattern, random)
            fused = check_rows(layer.inputs, sums, layer.checksum, layer.rounding.unstored)
            yield "sum", "fused", pattern, bit, fused.wrong, errors(sums, layer.sums)
            stored = check_rows(layer.inputs, sums.to(dtype), layer.checksum, layer.rounding)
            yield "sum", "stored", pattern, bit, stored.wrong, errors(sums.to(dtype), layer.sums.to(dtype))


def weight_trials(
    layer: Layer, bits: int, count: int, random: np.random.Generator
) -> Iterator[tuple[str, str, str, int, Any, Any]]:
    """The same for single weights: a trial is seen where any row is wrong."""
    for bit in range(bits):
        for _ in range(count):
            row, column = (int(random.integers(size)) for size in layer.weight.shape)
            changed = layer.weight[row : row + 1].clone()
            words(changed)[0, column] ^= -(1 << bit) if bit == bits - 1 else 1 << bit
            broken = layer.outputs.clone()
            broken[:, row] = torch.nn.functional.linear(layer.inputs.float(), changed.float())[:, 0].to(broken.dtype)
            wrong = check_rows(layer.inputs, broken, layer.checksum, layer.rounding).wrong.any()
            yield "weight", "stored", "single", bit, wrong[None], errors(broken, layer.outputs).amax()[None]


def integer_trials(layer: Layer, random: np.random.Generator) -> Iterator[tuple[str, str, str, int, Any, Any]]:
    """The same for int32 sums, of the layer rounded to int8; rows alone, and columns."""
    left, right = (
        torch.round(one.float() / one.float().abs().amax(-1, keepdim=True) * 127)
        for one in (layer.inputs, layer.weight)
    )
    sums = (left @ right.T).to(torch.int32)
    for pattern in PATTERNS:
        for bit in range(32):
            broken = struck(sums, bit, pattern, random)
            error = errors(broken, sums)
            yield "int32 sum", "rows", pattern, bit, integer_row_deviations(left, right.T, broken) != 0, error
            # Columns of a product of one token, for a few of them: the check holds tokens x N x K numbers.
            some = slice(0, FEW)
            by_column = integer_column_deviations(left[some, None], right.T, broken[some, None])
            yield "int32 sum", "columns", pattern, bit, (by_column != 0).any(-1), error[some]


def smallest(layer: Layer, check: str, random: np.random.Generator) -> tuple[float, float]:
    """The smallest error in one output of a row that is seen in 99 % of rows, in units of T, and of the rows' rms."""
    values = layer.sums if check == "fused" else layer.outputs
    rounding = layer.rounding.unstored if check == "fused" else layer.rounding
    threshold = check_rows(layer.inputs, values, layer.checksum, rounding).threshold
    places = torch.from_numpy(random.integers(0, values.shape[1], (len(values), 1)))
    signs = torch.from_numpy(random.choice([-1.0, 1.0], (len(values), 1))).float()
    rms = values.float().square().mean(-1).sqrt()
    for size in SIZES:
        error = signs * size * threshold[:, None]
        broken = values.float().scatter_add(1, places, error).to(values.dtype)
        if check_rows(layer.inputs, broken, layer.checksum, rounding).wrong.float().mean() >= 0.99:
            return float(size), float((size * threshold / rms).median())
    return float("inf"), float("inf")


def cells(spec: str, dtypes: Sequence[str], rows: int, weights: int) -> Iterator[dict[str, Any]]:
    """One row for each format, site, check, pattern and bit, and the smallest errors seen."""
    for dtype in dtypes:
        model = load(spec, dtype)
        with torch.inference_mode():
            layers = layers_at_work(model, rows)
            bits, found = format_of(dtype).bits, dict[tuple[str, str, str, int], Seen]()
            for number, layer in enumerate(layers):
                random = generator(0, number, f"strikes {dtype}")
                trials = [float_trials(layer, bits, random), weight_trials(layer, bits, weights, random)]
                if dtype == dtypes[0]:
                    trials.append(integer_trials(layer, random))
                for trial in trials:
                    for site, check, pattern, bit, wrong, error in trial:
                        found.setdefault((site, check, pattern, bit), Seen()).add(wrong, error)
            for (site, check, pattern, bit), one in sorted(found.items()):
                kind = {"dtype": dtype, "site": site, "check": check, "pattern": pattern, "bit": bit}
                yield {**kind, **asdict(one)}
            for check in ("fused", "stored"):
                sizes = [smallest(layer, check, generator(1, 0, "sizes")) for layer in layers]
                yield {
                    "dtype": dtype,
                    "site": "smallest error seen in 99 % of rows",
                    "check": check,
                    "thresholds": max(size for size, _ in sizes),
                    "rms": [rms for _, rms in sizes],
                }


def main() -> None:
    """Print one JSON object on the last line."""
    options = parser(__doc__, "64 rows and 4 weights a bit instead of 256 and 25")
    options.add_argument("--model", default="demo:smollm2-135m")
    options.add_argument("--dtypes", nargs="+", default=("bfloat16", "float16"))
    arguments = options.parse_args()
    found = []
    for row in cells(arguments.model, arguments.dtypes, *((64, 4) if arguments.quick else (256, 25))):
        found.append(row)
        if not arguments.json:
            print(row, flush=True)
    described = {"benchmark": "detection", "model": arguments.model, **environment()}
    print(json.dumps({**described, "cells": found, "checks": list(checks(found))}))


if __name__ == "__main__":
    main()
