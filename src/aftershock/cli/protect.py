"""`aftershock protect`: choose protections for a model by a study's records, within budgets."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from aftershock.cli.output import Json, console, print_json, say

Budget = Annotated[str, typer.Option(help="Most that answers may become slower, as in 2%.")]
MemoryBudget = Annotated[str, typer.Option(help="Most memory beside the model's own, as in 10%.")]


def command(
    model: Annotated[str, typer.Argument(help="The model that was studied: demo:NAME, a folder, a .gguf, a hub id.")],
    study: Annotated[Path, typer.Option(help="The --out folder of a study of this model.")],
    budget: Budget,
    memory_budget: MemoryBudget = "10%",
    trials: Annotated[int | None, typer.Option(help="Fresh faults that the choice is tried on.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for protections.json and the report.")] = None,
    json: Json = False,
) -> int:
    """Choose the protections that remove most silent data corruption for what they may cost, and try fresh faults."""
    from aftershock.protect import FRESH_TRIALS, parse_share, plan_protections
    from aftershock.report import plan_text, require_writable, write_protection_plan
    from aftershock.study import load_study

    shares = parse_share(budget, "--budget"), parse_share(memory_budget, "--memory-budget")
    if out is not None:
        # Not after an hour of trials.
        require_writable(out)
    planned = plan_protections(model, load_study(study), *shares, FRESH_TRIALS if trials is None else trials, say)
    line = ["aftershock", "protect", model, "--study", str(study), "--budget", budget, "--memory-budget", memory_budget]
    line += [] if trials is None else ["--trials", str(trials)]
    if json:
        print_json(planned.record)
    else:
        console.print(plan_text(planned.record), soft_wrap=True, markup=False)
    if out is not None:
        page = write_protection_plan(planned, shlex.join(line), out)
        if not json:
            console.print(f"\nreport: {page}", soft_wrap=True, markup=False)
    return 0
