"""What does each protection remove? The same faults under all of them.

    python -m benchmarks.protect_faults --bounds-from FILE --json [--quick] [--lines FILE] [--parts NAME...]
        [--device NAME] [--faults N] [--harmless N] [--share I/N] [--seconds S]
    python -m benchmarks.protect_faults --records FILE... --json

Faults are drawn where harm is likely, in turn in the top exponent bit and in the whole exponent of weights or stored
outputs of products (of sums in their upper half), and run without protection until so many of them made some answer
silently wrong. These, and some that did no harm, are run again under each scheme. A check that saw nothing of a fault
changed nothing, so its scheme is not run there. What is copied is chosen from the records of faults of their own.
`--lines` keeps a JSON object a trial as it comes; what it holds already is not run again, `--seconds` ends the
run between trials, `--share` deals trials out to processes with files of their own, `--records` gives the figures.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from aftershock.errors import InputError
from aftershock.protect import Backup, Ecc, detected_by, fragile_backup, fragile_ecc, protected_records
from aftershock.replay import FastExecutor
from aftershock.study import TrialRecord, trial_records
from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.protect_figures import COST, NOISE, checks, figures, prices
from benchmarks.protect_generations import run_generations
from benchmarks.protect_int8 import int8_records
from benchmarks.protect_keeping import Clock, OutOfTimeError, keep, line, missing
from benchmarks.protect_noise import run_reshaped
from benchmarks.protect_parts import BOUND_TOKENS, MARGIN, PARTS, Drawn, Part, draw, ranges
from benchmarks.protect_prices import run_costs
from benchmarks.protect_schemes import Json, Scheme, detectors, schemes
from benchmarks.recorded import Lines, read_lines

SEED = 11
BUDGET = 0.05
"""Share of the parameters' bytes that copies, or check words, may take."""

DRAWS, CHOICES = 64, 240
CHOICE = "choice"
CHUNK = {"cpu": 24, "cuda": 240}
"""Trials that are run together: on a GPU they share passes."""

DETECTED = 24


def plain(drawn: Drawn, lines: Lines, asked: argparse.Namespace, clock: Clock) -> list[dict[str, Any]]:
    """Trials without protection until enough did harm; the records of those to be run again."""

    def found() -> list[dict[str, Any]]:
        return [one for one in lines.records if (one["part"], one["scheme"]) == (drawn.part.name, "none")]

    executor = FastExecutor(drawn.plan.model)
    done = frozenset(one["trial"] for one in found())
    _, shares = asked.share
    for trials in drawn.trials(asked.share, done, CHUNK[asked.device]):
        if sum(bool(one["sdc"]) for one in found()) >= asked.faults / shares:
            break
        clock.check()
        for record in trial_records(executor, drawn.plan, trials):
            lines.put(line(drawn.part, "none", record))
    ordered = sorted(found(), key=lambda one: one["trial"])
    harmful = [one for one in ordered if one["sdc"]]
    harmless = [one for one in ordered if one["sdc"] == 0][: -(-asked.harmless // shares)]
    return [*harmful, *harmless]


def detect(drawn: Drawn, chosen: Sequence[Json], bounds: Any, lines: Lines, clock: Clock) -> dict[int, dict[str, Any]]:
    """At which components each kind of check sees the faults, by trial."""
    name = drawn.part.name
    checks_of = detectors(bounds)
    trials = missing(drawn, chosen, "seen", lines)
    for start in range(0, len(trials), DETECTED):
        clock.check()
        for found in detected_by(drawn.plan, trials[start : start + DETECTED], checks_of):
            by_kind = {type(check).__name__: one for check, one in zip(checks_of, found.seen, strict=True)}
            seen = {
                kind: sorted({component for site in one.sites for component in site.components})
                for kind, one in by_kind.items()
            }
            alarms = {kind: one.false_alarms for kind, one in by_kind.items()}
            lines.put({"part": name, "scheme": "seen", "trial": found.trial, "seen": seen, "false_alarms": alarms})
    wanted = {one["trial"] for one in chosen}
    found_in = [one for one in lines.records if (one["part"], one["scheme"]) == (name, "seen")]
    return {one["trial"]: one["seen"] for one in found_in if one["trial"] in wanted}


def run_scheme(
    drawn: Drawn, scheme: Scheme, chosen: Sequence[Json], seen: dict[int, Any], lines: Lines, clock: Clock
) -> None:
    """The trials under one scheme; those that it can't have changed are taken from the plain ones."""
    part = drawn.part
    acted = [one for one in chosen if scheme.acts(one, seen[one["trial"]])]
    for one in chosen:
        key = {"part": part.name, "scheme": scheme.name, "trial": one["trial"]}
        if one not in acted and key not in lines:
            lines.put({**one, **key, "ran": False})
    records = protected_records(drawn.plan, missing(drawn, acted, scheme.name, lines), scheme.protections)
    keep(part, scheme.name, records, lines, clock)


def copies(drawn: Drawn, lines: Lines, asked: argparse.Namespace, clock: Clock) -> tuple[Backup, Ecc] | None:
    """A backup and check words within the budget, chosen from trials of their own; None where these tell of no harm."""
    model, part = drawn.plan.model, drawn.part
    others = drawn.of_seed(SEED + 1)
    trials = missing(others, [{"trial": number} for number in range(asked.choice)], CHOICE, lines)
    for record in trial_records(FastExecutor(model), others.plan, trials):
        lines.put({**line(part, CHOICE, record), "record": record.model_dump(mode="json")})
        clock.check()
    kept = [one for one in lines.records if (one["part"], one["scheme"]) == (part.name, CHOICE)]
    stored = [TrialRecord.model_validate(one["record"]) for one in kept]
    budget = int(BUDGET * sum(one.nbytes for one in model.module.parameters()))
    try:
        return fragile_backup(model, stored, budget), fragile_ecc(model, stored, budget)
    except InputError:
        return None


def run_plain(drawn: Drawn, chosen: Sequence[Json], scheme: str, lines: Lines, clock: Clock) -> None:
    """Trials without a protection, under a name of their own."""
    trials = missing(drawn, chosen, scheme, lines)
    keep(drawn.part, scheme, trial_records(FastExecutor(drawn.plan.model), drawn.plan, trials), lines, clock)


def run_part(part: Part, lines: Lines, asked: argparse.Namespace, clock: Clock) -> None:
    """Everything of one part, what tells most first."""
    drawn = draw(part, asked.device, SEED)
    bounds = ranges(drawn.plan.model, asked.bounds_from, asked.bound_tokens, MARGIN)
    if part.kind == "generation":
        run_generations(drawn, bounds, asked.generations, asked.share, lines, clock.check)
        return
    chosen = plain(drawn, lines, asked, clock)
    seen = detect(drawn, chosen, bounds, lines, clock)
    quiet = [{"trial": number} for number in range(asked.share[0], asked.noise, asked.share[1])]
    run_plain(drawn.noise(), quiet, NOISE, lines, clock)
    run_reshaped(drawn, lines)
    every = asked.schemes is None
    kept = copies(drawn, lines, asked, clock) if part.site == "weight" and every else None
    for scheme in schemes(part, bounds, kept or ())[: asked.schemes]:
        run_scheme(drawn, scheme, chosen, seen, lines, clock)
    if part.arithmetic is None and every:
        run_plain(drawn.asked_again(), chosen, "more shots", lines, clock)
        struck = [one for one in chosen if one["component"] == "down"]
        keep(part, "int8 down", int8_records(drawn, missing(drawn, struck, "int8 down", lines)), lines, clock)


def run_prices(lines: Lines, asked: argparse.Namespace, clock: Clock) -> None:
    """What every scheme costs in fp32; copies are those of the part that strikes weights."""
    weights, outputs = (draw(part, asked.device, SEED) for part in PARTS[:2])
    bounds = ranges(outputs.plan.model, asked.bounds_from, asked.bound_tokens, MARGIN)
    run_costs(outputs, asked.bounds_from, bounds, copies(weights, lines, asked, clock) or (), lines)


def run(asked: argparse.Namespace) -> Iterator[str]:
    """Run the parts asked for; names of those that time ended."""
    clock = Clock(asked.seconds)
    lines = Lines(asked.lines, ("part", "scheme", "trial"))
    for part in PARTS:
        if part.name in asked.parts:
            try:
                run_part(part, lines, asked, clock)
            except OutOfTimeError:
                yield part.name
    if COST in asked.parts:
        run_prices(lines, asked, clock)
    asked.found = lines.records


def arguments() -> argparse.Namespace:
    """The command's arguments."""
    made = parser(__doc__, "a tenth of the faults, of float32 alone, and costs")
    made.add_argument("--bounds-from", type=Path, help="the text whose values set the range guards' bounds")
    made.add_argument("--lines", type=Path, help="a file of what was run before, added to")
    made.add_argument("--records", type=Path, nargs="+", help="files that --lines wrote: nothing is run")
    made.add_argument("--parts", nargs="+", default=[*(part.name for part in PARTS), COST])
    made.add_argument("--device", default="cpu", choices=tuple(CHUNK))
    made.add_argument("--faults", type=int, default=300, help="faults that do harm, of each part")
    made.add_argument("--harmless", type=int, default=50)
    made.add_argument("--generations", type=int, default=60, help="faults that change a text, of each part")
    made.add_argument("--noise", type=int, default=DRAWS, help="changes that mean nothing")
    made.add_argument("--schemes", type=int, help="run the first so many alone")
    made.add_argument("--choice", type=int, default=CHOICES, help="faults that copies are chosen from")
    made.add_argument("--bound-tokens", type=int, default=BOUND_TOKENS)
    made.add_argument("--share", type=lambda text: tuple(map(int, text.split("/"))), default=(0, 1), metavar="I/N")
    made.add_argument("--seconds", type=float, default=float("inf"))
    asked = made.parse_args()
    if asked.quick:
        asked.faults, asked.harmless, asked.generations, asked.noise, asked.choice = 30, 5, 6, 8, 48
        asked.parts = [name for name in asked.parts if name.startswith(("float32", COST))]
    if asked.records is None and asked.bounds_from is None:
        made.error("give --bounds-from, a text, or --records")
    return asked


def main() -> None:
    """Run what is missing and print one JSON object on the last line."""
    asked = arguments()
    unfinished = [] if asked.records else list(run(asked))
    records = read_lines(asked.records) if asked.records else asked.found
    found = figures(records)
    print(
        json.dumps(
            {
                "benchmark": "protect_faults",
                "what": "the same faults under every protection: SDC removed, coverage",
                **environment(),
                "device": asked.device,
                "quick": asked.quick,
                "n": len(records),
                "unfinished": unfinished,
                "figures": found,
                "prices": prices(records),
                "checks": checks(found),
            }
        )
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
