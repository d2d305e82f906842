"""`aftershock study` with a file of several studies: run them all, and report on them together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from aftershock.cli.output import console, print_json, say
from aftershock.errors import ContractError, InputError
from aftershock.report import write_joint_report, write_report
from aftershock.study import (
    Member,
    check_settings,
    expand,
    load_study,
    run_campaign,
    summarise,
    summarise_campaign,
    table_of,
)

Options = Mapping[str, Mapping[str, Any]]


class PlannedStudy(BaseModel):
    """A study to run."""

    name: str
    model: str
    task: str
    trials: int


class PlannedCampaign(BaseModel):
    """What `--dry-run --json` prints of a campaign."""

    studies: tuple[PlannedStudy, ...]


def _planned(member: Member) -> PlannedStudy:
    settings = member.settings
    return PlannedStudy(name=member.name, model=settings.model.spec, task=settings.task.spec, trials=settings.trials)


def members(tables: Mapping[str, Any], source: str, options: Options) -> tuple[Member, ...]:
    """The studies of the file, each with what was given on the command line in place of its own."""
    return tuple(
        Member(name, check_settings(overridden(own, options), f"{source}, study {name}"))
        for name, own in expand(tables, source)
    )


def overridden(tables: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Tables of a study with the options that were given."""
    given = {name: {key: value for key, value in keys.items() if value is not None} for name, keys in options.items()}
    return {**tables, **{name: {**table_of(tables, name), **keys} for name, keys in given.items() if keys}}


def plan_campaign(found: tuple[Member, ...], json: bool) -> None:
    """Tell which studies there are."""
    if json:
        print_json(PlannedCampaign(studies=tuple(map(_planned, found))))
        return
    for member in found:
        settings = member.settings
        console.print(
            f"{member.name}: {settings.trials:,} trials, {settings.model.spec} on {settings.task.spec}",
            soft_wrap=True,
            markup=False,
        )
    console.print(f"{len(found):,} studies, {sum(member.settings.trials for member in found):,} trials", markup=False)


def carry_out(found: tuple[Member, ...], out: Path, *, resume: bool, workers: int, json: bool) -> None:
    """Run the studies into `out`, write their reports and the one of all. Raises InputError when some can't run."""
    failed = []
    for number, state in enumerate(run_campaign(found, out, resume=resume, workers=workers, say=say), 1):
        if state.outcome == "done":
            stored = load_study(out / state.name)
            write_report(stored, out / state.name)
            said = f"SDC {summarise(stored).sdc_rate.estimate:.2%}, {stored.seconds:,.0f} s of trials"
        else:
            failed.append(state)
            said = f"{state.outcome}: {state.why}"
        say(f"{number}/{len(found)} {state.name}: {said}")
    summary = summarise_campaign(out)
    page = write_joint_report(summary, out)
    if json:
        print_json(summary)
    else:
        console.print(f"report: {page}", soft_wrap=True, markup=False)
    if failed:
        broken = any(state.outcome == "contract failed" for state in failed)
        raise (ContractError if broken else InputError)(
            f"{len(failed)} of {len(found)} studies did not come to their end; {page} says why: mend that, and --resume"
        )


def only_plain(**others: object) -> None:
    """Refuse options that go with one study alone."""
    given = [f"--{name}" for name, value in others.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{given[0]} goes with one study alone: leave it out, this file has several")
