"""Does a diagnosis name the component that is wrong, and why?

    python -m benchmarks.diagnose --json [--quick] [--cases GLOB] [--engines transformers vllm ...] [--lines FILE]
    python -m benchmarks.diagnose --json --records FILE ...

Every file of `benchmarks/diagnose_cases` is one planted error (or a control in which nothing is wrong): it is planted,
what the engine then computes is captured, and diagnosed without knowing the case. Cases by an independent author stand
apart from the builder's, causes outside the vocabulary apart from those within. `--lines` keeps one JSON object a case;
`--records` gives the figures of such files, in which the last line of a case counts. Last, the time and the memory of
one diagnosis of SmolLM2-135M by the command.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from aftershock.capture import ENGINES, Prompt, engine_python, record, write_bundle
from aftershock.diagnose import default_prompts, diagnose
from aftershock.errors import InputError
from aftershock.models import load
from benchmarks.arguments import parser
from benchmarks.diagnose_bundles import bundle_of, captured
from benchmarks.diagnose_scores import EKKA, Score, figures, missed, score
from benchmarks.environment import environment
from benchmarks.plants.building import clean_target, planted_target
from benchmarks.plants.cases import FOLDER, Case, read_case
from benchmarks.plants.targets import Target
from benchmarks.recorded import read_lines

MODEL = "demo:smollm2-135m"
QUICK = 4
"""In a quick run every so many cases, tiny models alone."""

TARGETS = (
    ("all", "pass@1", 0.95),
    ("all", "pass@5", 1.0),
    ("all", "component@1", 1.0),
    ("independent", "pass@1", 0.85),
)
"""Least shares of the detectable errors, by group."""

TOKENS = 128
"""Most tokens of a prompt of the run that is timed."""


def prompts_of(target: Target) -> tuple[Prompt, ...]:
    """The prompts as a user has them: chats, texts, or token ids."""
    return target.chats or target.texts or target.prompts


def run(case: Case) -> Score:
    """Plant, capture and diagnose one case."""
    clean = clean_target(case)
    with TemporaryDirectory() as scratch:
        if case.engine == "transformers":
            bundle = bundle_of(planted_target(clean_target(case), case.plant), case)
        else:
            bundle = captured(case, Path(scratch))
        begin = time.perf_counter()
        found = diagnose(clean.model, bundle, prompts_of(clean))
        return score(case, found, time.perf_counter() - begin)


def available(engine: str) -> bool:
    """Whether an engine has an environment on this machine."""
    try:
        return engine_python(engine).exists()
    except InputError:
        return False


def chosen(arguments: argparse.Namespace) -> Iterator[Case]:
    """The cases to run."""
    paths = sorted(FOLDER.glob(f"{arguments.cases}.toml"))
    cases = [case for case in map(read_case, paths) if case.engine in arguments.engines]
    if arguments.quick:
        cases = [case for case in cases if case.model.startswith("tiny:")][::QUICK]
    yield from cases


def scores_of(arguments: argparse.Namespace) -> Iterator[Score]:
    """Every case's score; a case whose diagnosis fails counts as missed."""
    for case in chosen(arguments):
        begin = time.perf_counter()
        try:
            one = run(case)
        except Exception as error:  # whatever ends a diagnosis leaves its user without one
            one = missed(case, f"{type(error).__name__}: {error}", time.perf_counter() - begin)
        line = json.dumps(asdict(one))
        if arguments.lines is not None:
            with arguments.lines.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if not arguments.json:
            print(line, flush=True)
        gc.collect()
        yield one


def recorded(files: Sequence[Path]) -> list[Score]:
    """The scores in files, one of each case."""
    return list({line["case"]: Score(**line) for line in read_lines(files)}.values())


def cost(dtype: str) -> dict[str, Any]:
    """Seconds and peak memory of the command on a clean bundle of SmolLM2."""
    with TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        model = load(MODEL, dtype)
        rows = [
            model.tokenizer(prompt)["input_ids"][:TOKENS]
            for prompt in default_prompts(model)
            if isinstance(prompt, str)
        ]
        recorded = record(model, rows)
        write_bundle(recorded, bundle)
        tokens = recorded.manifest.tokens
        del model, recorded
        gc.collect()
        command = [sys.executable, "-m", "aftershock.cli", "diagnose", "--reference", MODEL, "--target", str(bundle)]
        begin = time.perf_counter()
        with (Path(scratch) / "stdout").open("wb") as stdout:
            _, status, used = os.wait4(subprocess.Popen([*command, "--json"], stdout=stdout).pid, 0)
        seconds = time.perf_counter() - begin
    code = os.waitstatus_to_exitcode(status)
    return {
        "dtype": dtype,
        "tokens": tokens,
        "seconds": seconds,
        "peak_bytes": used.ru_maxrss * 1024,
        "exit_code": code,
    }


def checks(found: dict[str, Any], spent: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """One entry for each figure that the work set out to reach."""
    for group, name, target in TARGETS:
        if name in found.get(group, {}):
            value = found[group][name]["estimate"]
            met = value >= target
            yield {"name": f"{group}: {name}", "value": value, "target": target, "unit": "share", "met": met}
    if "controls" in found:
        value = found["controls"]["false alarms"]["estimate"]
        yield {"name": "false alarms", "value": value, "target": 0.0, "unit": "share", "met": value <= 0.0}
    if spent is not None:
        for name, value, target, unit in (
            ("one diagnosis of SmolLM2", spent["seconds"], 90.0, "s"),
            ("its peak memory", spent["peak_bytes"] / 2**30, 4.0, "GiB"),
        ):
            yield {"name": name, "value": value, "target": target, "unit": unit, "met": value <= target}


def main() -> None:
    """Run the cases and print one JSON object on the last line."""
    options = parser(__doc__, "every fourth case on a tiny model, no timing")
    options.add_argument("--cases", default="*", metavar="GLOB", help="names of cases")
    options.add_argument("--engines", nargs="+", default=[one for one in ENGINES if available(one)])
    options.add_argument("--lines", type=Path, help="a file that every case's score is appended to")
    options.add_argument("--records", type=Path, nargs="+", help="files that --lines wrote: nothing is run")
    arguments = options.parse_args()
    partly = arguments.quick or arguments.cases != "*" or arguments.records is not None
    scores = list(scores_of(arguments)) if arguments.records is None else recorded(arguments.records)
    spent = None if partly else cost("bfloat16")
    found = figures(scores)
    print(
        json.dumps(
            {
                "benchmark": "diagnose",
                "what": "planted errors in serving engines: component, cause and parameter named without an LLM",
                **environment(),
                "quick": arguments.quick,
                "n": len(scores),
                "figures": found,
                "ekka": EKKA,
                "seconds_of_a_case": sum(one.seconds for one in scores) / max(len(scores), 1),
                "cost": spent,
                "missed": [
                    {"case": one.case, "said": one.said}
                    for one in scores
                    if (one.divergent if one.control else one.detectable and not one.cause)
                ],
                "checks": list(checks(found, spent)),
            }
        )
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
