"""Does protection pay? All parts of the answer in one object.

    python -m benchmarks.protect --data FOLDER --json [--quick] [--parts NAME...]
    python -m benchmarks.protect --records FILE... --json

Each part is a benchmark of its own, run one after the other: the same faults under every protection, range guards on
clean text, statistical checksums under voltage, false alarms and detection of checks, and, where there is a GPU, what
checks cost there. FOLDER holds texts: `lm/wikitext2_valid.tokens.txt`, `lm/wikitext2_test.raw.txt` and `.jsonl` files.
`--records` runs nothing: each FILE is what a part printed, its last line, or the plan of `aftershock protect --json`.
"""

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import parser
from benchmarks.environment import environment

Json = dict[str, Any]
PLAN = "plan of protections"


def commands(data: Path) -> dict[str, list[str]]:
    """The arguments of every part that can run here."""
    valid, test = (str(data / "lm" / name) for name in ("wikitext2_valid.tokens.txt", "wikitext2_test.raw.txt"))
    texts = [test, *map(str, sorted(data.rglob("*.jsonl")))]
    found = {
        "protect_faults": ["--bounds-from", valid],
        "protect_ranges": ["--bounds-from", valid, "--texts", *texts],
        "protect_voltage": [str(data)],
        "false_alarms": ["--texts", *texts],
        "detection": [],
    }
    return found | ({"protect_cost": []} if torch.cuda.is_available() else {})


def ran(asked: Namespace) -> Iterator[Json]:
    """What each part prints."""
    for name, arguments in commands(asked.data).items():
        if asked.parts and name not in asked.parts:
            continue
        quick = ["--quick"] if asked.quick else []
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, *quick, "--json"]
        yield last_line(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def last_line(text: str) -> Json:
    """The object on the last line of what a part printed."""
    found: Json = json.loads(text.strip().splitlines()[-1])
    return found


def joined(parts: Iterable[Json]) -> Json:
    """All parts, by name (numbered where there are several of one), and all their checks."""
    found: dict[str, Json] = {}
    for one in parts:
        name = one.get("benchmark", PLAN if "chosen" in one else "unnamed")
        same = sum(other == name or other.startswith(f"{name} ") for other in found)
        found[f"{name} {same + 1}" if same else name] = one
    checks = [{"part": name, **check} for name, one in found.items() for check in one.get("checks", ())]
    return {
        "n": len(found),
        "parts": {name: {key: value for key, value in one.items() if key != "checks"} for name, one in found.items()},
        "checks": checks,
        "met": f"{sum(check['met'] for check in checks)} of {len(checks)}",
    }


def main() -> None:
    """Run or read the parts and print one JSON object on the last line."""
    made = parser(__doc__, "a smaller run of every part")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="a folder of texts")
    source.add_argument("--records", type=Path, nargs="+", help="files of what parts printed: nothing is run")
    made.add_argument("--parts", nargs="+", help="parts to run; none given: all")
    asked = made.parse_args()
    read = (last_line(path.read_text(encoding="utf-8")) for path in asked.records or ())
    found = joined(ran(asked) if asked.data else read)
    print(
        json.dumps(
            {
                "benchmark": "protect",
                "what": "protections: what they remove, what they cost, and whether they are silent on clean runs",
                **environment(),
                "quick": asked.quick,
                **found,
            }
        )
    )


if __name__ == "__main__":
    main()
