"""Are broken bits found and put back, and what does it cost?

    python -m benchmarks.locate --json [--quick] [--seed N] [--parts words activations text speed] [--device cpu]
                                       [--data DIR] [--cells "smollm2-135m bfloat16" ...] [--records FILE ...]

- words: faults in stored words of five formats, by fingerprint of both profiles and by a clean copy (`locate_words`);
- activations: flips in a live model, by a clean recording of it (`locate_activations`);
- text: by text alone (`locate_text`; needs `--data`), or what records that it printed elsewhere come to (`--records`);
- speed: checking and searching, beside plain sums of the same bytes, and on CUDA beside a copy (`locate_speed`).
"""

import argparse
import json
import operator
import time
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from benchmarks import locate_activations, locate_speed, locate_words
from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.locate_records import figures
from benchmarks.locate_text import CELLS, run_cell

PARTS = ("words", "activations", "text", "speed")
AT_LEAST, AT_MOST = operator.ge, operator.le

Target = tuple[str, tuple[str, ...], float, str, Any]
"""Name, where the value stands, target, unit, and how the value must compare with it."""


def _targets() -> Iterator[Target]:
    for kind in ("single", *(f"{count} flips" for count in locate_words.SETS)):
        for figure, what in (("located", "located"), ("undone", "undone"), ("by_words", "located by a clean copy")):
            yield f"words: {kind}, {what}", ("words", "over_all", kind, figure, "estimate"), 1.0, "share", AT_LEAST
    yield "words: false alarms", ("words", "over_all", "clean", "alarm", "estimate"), 0.0, "share", AT_MOST
    for figure in ("block", "tensor"):
        yield f"activations: right {figure}", ("activations", "of_those", figure, "estimate"), 1.0, "share", AT_LEAST
    for kind, wanted in {
        "natural": {"block": 0.98, "tensor": 0.97, "exact": 0.95, "recovered_accuracy": 0.98},
        "hard": {"block": 0.85, "block_top3": 0.95, "recovered_accuracy": 0.8},
    }.items():
        for figure, target in wanted.items():
            yield f"text: {kind}, {figure}", ("text", "over_all", kind, figure, "estimate"), target, "share", AT_LEAST
    yield "text: false alarms", ("text", "over_all", "false_alarms", "estimate"), 0.01, "share", AT_MOST
    for kind in ("natural", "hard"):
        passes = ("text", "over_all", kind, "passes_per_layer_of_one_flip", "estimate")
        yield f"text: {kind}, passes per layer of one flip, mean", passes, 10.0, "passes", AT_MOST
    for which in ("each", "buffer"):
        at: tuple[str, ...] = ("speed", f"verify_over_sum_of_{which}", "estimate")
        yield f"speed: verify over a plain sum ({which})", at, 0.6, "share", AT_LEAST
    at = ("speed", "cuda", "checksum_over_copy_bandwidth", "estimate")
    yield "speed: checksum over copy bandwidth", at, 0.75, "share", AT_LEAST


SIZES = {"SmolLM2-135M bfloat16": 2.5, "SmolLM2-135M Q4_1": 7.0, "Llama-3.1-8B shapes bfloat16": 0.35}
"""Most per cent of a model that an exact fingerprint may have; a small one 0.2 anywhere."""


def checks(parts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One entry for each target whose part ran."""
    for name, at, target, unit, compare in _targets():
        try:
            value = reduce(operator.getitem, at, parts)
        except (KeyError, TypeError):
            continue  # this run did not measure it
        yield _check(name, value, target, unit, compare)
    for one in parts.get("words", {}).get("sizes", ()):
        most = 0.2 if one["profile"] == "small" else SIZES.get(one["model"])
        if most is not None:
            name = f"words: {one['profile']} fingerprint of {one['model']}"
            yield _check(name, one["percent"], most, "%", AT_MOST)


def _check(name: str, value: Any, target: float, unit: str, compare: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "unit": unit, "met": bool(compare(value, target))}


def _measure(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    quick, seed = arguments.quick, arguments.seed
    if part == "words":
        return locate_words.measure((4, 1, 2) if quick else (200, 20, 20), seed)
    if part == "activations":
        return locate_activations.measure(40 if quick else 300, seed)
    if part == "speed":
        return locate_speed.measure(arguments.device, 20 if quick else 100, seed)
    if arguments.records:
        lines = [line for file in arguments.records for line in file.read_text(encoding="utf-8").splitlines()]
        # Lines of other kinds (warnings, a last one cut short) may stand between.
        records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    else:
        counts, rows = ((6, 4, 4), 2) if quick else ((60, 40, 50), 4)
        cells = (run_cell(name, arguments.device, arguments.data, counts, rows, seed) for name in arguments.cells)
        records = [record for cell in cells for record in cell]
    return figures(records, seed)


def main() -> None:
    """Run the parts and print one JSON object on the last line."""
    options = parser(__doc__, "fewer faults of each kind, fewer turns")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=["words", "activations", "speed"])
    options.add_argument("--device", default="cpu", help="for text and speed")
    options.add_argument("--data", type=Path, help="folder with the task files, for text")
    options.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=list(CELLS))
    options.add_argument("--records", nargs="+", type=Path, help="records printed by text elsewhere: nothing is run")
    arguments = options.parse_args()
    if "text" in arguments.parts and not (arguments.data or arguments.records):
        options.error("text needs --data, the folder with the task files, or --records, what was printed elsewhere")
    parts: dict[str, Any] = {}
    for part in arguments.parts:
        begin = time.perf_counter()
        found = _measure(part, arguments)
        parts[part] = {"threads": torch.get_num_threads(), **found, "seconds_in_all": time.perf_counter() - begin}
        if not arguments.json:
            print(json.dumps({part: parts[part]}), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "locate",
                "what": "faults found and put back: stored words, activations, text alone; what checking costs",
                "models": ["SmolLM2-135M-Instruct", *(["gemma-3-270m"] if "text" in parts else [])],
                "device": arguments.device,
                **environment(),
                "seed": arguments.seed,
                "quick": arguments.quick,
                "n": {part: found["n"] for part, found in parts.items()},
                **parts,
                "checks": list(checks(parts)),
            }
        )
    )


if __name__ == "__main__":
    main()
