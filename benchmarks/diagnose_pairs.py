"""What does `aftershock diagnose` say of engines as they are released?

    python -m benchmarks.diagnose_pairs --json [--quick] [--engines vllm ...] [--reports DIR]

Every engine that this machine has an environment for, against transformers, on the demo models, in every arithmetic of
PAIRS: the command as a user types it, on its built-in prompts. One JSON object a pair: the verdict (of an engine that
can't run the model, its last words), the largest error ratio, and seconds and peak memory of the whole command, the
engine's own start and run in them. `--reports` keeps the pages.
"""

import json
import os
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from aftershock.capture import ENGINES
from aftershock.diagnose import Diagnosis
from benchmarks.arguments import parser
from benchmarks.diagnose import available
from benchmarks.environment import environment


class Pair(NamedTuple):
    """An engine, a demo model, and what the engine computes in."""

    engine: str
    model: str
    dtype: str


SMOLLM2, GEMMA3 = "demo:smollm2-135m", "demo:gemma3-270m"

PAIRS = (
    Pair("transformers", SMOLLM2, "float32"),
    Pair("transformers", SMOLLM2, "bfloat16"),
    Pair("transformers", SMOLLM2, "float16"),
    Pair("vllm", SMOLLM2, "float32"),
    Pair("vllm", SMOLLM2, "bfloat16"),
    Pair("vllm", SMOLLM2, "float16"),
    Pair("onnxruntime", SMOLLM2, "float32"),
    Pair("onnxruntime", SMOLLM2, "float16"),
    Pair("openvino", SMOLLM2, "float32"),
    Pair("openvino", SMOLLM2, "float16"),
    Pair("llamacpp", SMOLLM2, "stored"),
    Pair("llamacpp", SMOLLM2, "float32"),
    Pair("llamacpp", SMOLLM2, "float16"),
    Pair("llamacpp", SMOLLM2, "Q8_0"),
    Pair("transformers", GEMMA3, "float32"),
    Pair("transformers", GEMMA3, "bfloat16"),
    Pair("vllm", GEMMA3, "float32"),
    Pair("vllm", GEMMA3, "bfloat16"),
    Pair("onnxruntime", GEMMA3, "float32"),
    Pair("openvino", GEMMA3, "float32"),
    Pair("llamacpp", GEMMA3, "stored"),
    Pair("llamacpp", GEMMA3, "float32"),
)


def said(pair: Pair, reports: Path) -> dict[str, Any]:
    """What the command says of a pair, its exit code, and what it took: seconds, and the most memory of one process."""
    folder = reports / "-".join((pair.engine, pair.model.removeprefix("demo:"), pair.dtype))
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "--reference": pair.model,
        "--target": f"{pair.engine}:{pair.model}",
        "--dtype": pair.dtype,
        "--out": str(folder),
    }
    command = [sys.executable, "-m", "aftershock.cli", "diagnose", *chain(*options.items()), "--json"]
    out, told = folder / "stdout.txt", folder / "stderr.txt"
    begin = time.perf_counter()
    with out.open("wb") as stdout, told.open("wb") as stderr:
        _, status, used = os.wait4(subprocess.Popen(command, stdout=stdout, stderr=stderr).pid, 0)
    code = os.waitstatus_to_exitcode(status)
    cost = {"exit_code": code, "seconds": time.perf_counter() - begin, "peak_bytes": used.ru_maxrss * 1024}
    text = out.read_text(encoding="utf-8").strip()
    if not text:
        return {**pair._asdict(), **cost, "verdict": told.read_text(encoding="utf-8").strip().splitlines()[-1]}
    found = Diagnosis.model_validate_json(text.splitlines()[-1])
    return {
        **pair._asdict(),
        **cost,
        "verdict": found.verdict,
        "divergent": found.divergent,
        "causes": [f"{one.component}: {one.cause}" for one in found.findings],
        "points": len(found.curve),
        "largest_ratio": max((one.local for one in found.curve if one.local is not None), default=None),
    }


def main() -> None:
    """Run the command on every pair and print one JSON object on the last line."""
    options = parser(__doc__, "SmolLM2 in float32 alone")
    options.add_argument("--engines", nargs="+", default=[one for one in ENGINES if available(one)])
    options.add_argument("--reports", type=Path, help="a folder for the pages")
    arguments = options.parse_args()
    pairs = [one for one in PAIRS if one.engine in arguments.engines]
    if arguments.quick:
        pairs = [one for one in pairs if one.model == SMOLLM2 and one.dtype == "float32"]
    rows = []
    with TemporaryDirectory() as scratch:
        for pair in pairs:
            rows.append(said(pair, arguments.reports or Path(scratch)))
            if not arguments.json:
                print(json.dumps(rows[-1]), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "diagnose_pairs",
                "what": "verdicts on engines as released, against transformers",
                **environment(),
                "quick": arguments.quick,
                "n": len(rows),
                "pairs": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
