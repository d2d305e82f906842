"""`aftershock study`: plan and run a study."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aftershock.cli.output import Json, StudyProgress, console, print_json, say

if TYPE_CHECKING:
    from aftershock.study import Crew, Outlook, Plan, Summary

DEMO = "demo"


def command(
    study: Annotated[
        str | None, typer.Argument(help="A study file (TOML), or `demo`. Options override it or stand in for it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the records and the report.")] = None,
    model: Annotated[str | None, typer.Option(help="demo:NAME, a folder, a .gguf file, or a hub id.")] = None,
    task: Annotated[
        str | None, typer.Option(help="`probe`, the path of a .jsonl or .txt task, or lm_eval:NAME.")
    ] = None,
    unsafe_code: Annotated[
        bool,
        typer.Option("--unsafe-code", help="Run what the model writes even where this machine can't isolate it."),
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, cuda:0,cuda:1, auto.")] = None,
    faults: Annotated[Path | None, typer.Option(help="Your own faults, one trial a line, see docs/faults.md.")] = None,
    executor: Annotated[
        Literal["fast", "reference"],
        typer.Option(help="reference runs every trial in full; the records are the same."),
    ] = "fast",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Share the work among so many processes, or run so many studies of a campaign at once."
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Share it among workers of a Ray cluster: HOST:PORT, auto, or local.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials.")] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Stop once this is known: 'sdc ±0.5%' (or +-), 'rank components'. --trials is then the most."
        ),
    ] = None,
    search: Annotated[
        int | None, typer.Option(metavar="VALUES", help="Find the boundary bit of so many weights; docs/search.md.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan, sizing and time; run nothing.")] = False,
    pilot: Annotated[
        Path | None,
        typer.Option(help="With --dry-run: a study that ran, to say how many items each fault should see."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    json: Json = False,
) -> int:
    """Put faults into a model, run a task, and report what became of the answers."""
    from aftershock.cli import campaign
    from aftershock.errors import ContractError
    from aftershock.replay import FastExecutor, ReferenceExecutor
    from aftershock.report import write_report
    from aftershock.study import (
        advise,
        estimate_seconds,
        is_campaign,
        load_study,
        make_plan,
        outlook,
        require_ray,
        run_study,
        summarise,
    )

    options: dict[str, dict[str, Any]] = {
        "model": {"spec": model, "dtype": dtype, "device": device},
        "task": {"spec": task, "unsafe_code": unsafe_code or None},
        "search": {"values": search},
        "run": {"trials": trials, "until": until, "seed": seed},
    }
    tables = _tables(study)
    if is_campaign(tables):
        slow = None if executor == "fast" else executor
        campaign.only_plain(faults=faults, search=search, pilot=pilot, ray=ray, executor=slow)
        found = campaign.members(tables, str(study), options)
        if dry_run:
            campaign.plan_campaign(found, json)
            return 0
        campaign.carry_out(found, _given(out), resume=resume, workers=workers or 1, json=json)
        return 0
    settings = _settings(tables, study or "the command line", options, faults)
    if pilot is not None and not dry_run:
        raise typer.BadParameter("advice from a pilot is given with --dry-run", param_hint="--pilot")
    if not dry_run:
        out = _given(out)
    if ray is not None:
        require_ray()
    plan = make_plan(settings, say)
    if dry_run:
        say("timing one batch of each kind")
        advice = None if pilot is None else advise(plan, load_study(pilot))
        _show(outlook(plan, seconds=estimate_seconds(plan), advice=advice), json)
        return 0
    assert out is not None
    if not json:
        _show(outlook(plan), json)
    with StudyProgress() as progress:
        runs = {"fast": FastExecutor, "reference": ReferenceExecutor}[executor](plan.model)
        crew = _crew(plan, workers, ray, executor)
        stored = run_study(plan, out, resume=resume, watch=progress, executor=runs, crew=crew)
    page = write_report(stored, out)
    summary = summarise(stored)
    _show(summary, json)
    if not json:
        console.print(f"\nreport: {page}", soft_wrap=True, markup=False)
    if summary.audit is not None and summary.audit.disagreements:
        raise ContractError(
            f"{summary.audit.disagreements} of {summary.audit.trials} audited trials differ from the reference "
            "executor's; run the study with --executor reference, and please report this"
        )
    return 0


def _crew(plan: "Plan", workers: int | None, ray: str | None, executor: Literal["fast", "reference"]) -> "Crew | None":
    """The workers asked for; None where this process does the work."""
    from aftershock.study import process_crew, ray_crew

    if ray is not None:
        return ray_crew(plan, ray, workers, executor)
    return None if workers is None else process_crew(plan, workers, executor, say)


def _show(result: "Outlook | Summary", json: bool) -> None:
    if json:
        print_json(result)
    else:
        console.print(result.text(), soft_wrap=True, markup=False)


def _given(out: Path | None) -> Path:
    if out is None:
        raise typer.BadParameter("give a folder for the records and the report", param_hint="--out")
    return out


def _tables(study: str | None) -> dict[str, Any]:
    """The tables of the study file; of `demo`, the one that comes with the package."""
    from aftershock.study import read_settings

    if study is None:
        return {}
    return read_settings(Path(str(files("aftershock.study") / "demo.toml")) if study == DEMO else Path(study))


def _settings(tables: dict[str, Any], source: str, options: dict[str, dict[str, Any]], faults: Path | None) -> Any:
    """Settings of the file, overridden by what was given on the command line."""
    from aftershock.cli.campaign import overridden
    from aftershock.faults import format_faults, read_faults
    from aftershock.study import check_settings

    check_settings(tables, source)
    tables = overridden(tables, options)
    if options["search"]["values"] is not None:
        tables["faults"] = {"sites": ["weight"], **tables.get("faults", {})}
    if faults is not None:
        if options["run"]["trials"] is not None:
            raise typer.BadParameter(
                "a fault list runs one trial a line, so leave one of --trials and --faults out", param_hint="--trials"
            )
        tables["fault_list"] = [format_faults(trial) for trial in read_faults(faults)]
    return check_settings(tables, "the command line")
