"""`aftershock report`: write a study's report again."""

from pathlib import Path
from typing import Annotated

import typer

from aftershock.cli.output import Json, console, print_json


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's --out folder.")], json: Json = False
) -> int:
    """Write DIR/report.html, report.md and the CSV tables from the records."""
    from aftershock.report import write_joint_report, write_report
    from aftershock.study import is_campaign_folder, load_study, summarise, summarise_campaign

    if is_campaign_folder(folder):
        found = summarise_campaign(folder)
        page = write_joint_report(found, folder)
        if json:
            print_json(found)
        else:
            console.print(f"report: {page}", soft_wrap=True, markup=False)
        return 0
    stored = load_study(folder)
    page = write_report(stored, folder)
    if json:
        print_json(summarise(stored))
    else:
        console.print(f"report: {page}", soft_wrap=True, markup=False)
    return 0
