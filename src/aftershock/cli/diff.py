"""`aftershock diff`: what differs between two studies."""

from pathlib import Path
from typing import Annotated

import typer

from aftershock.cli.output import Json, console, print_json


def command(
    first: Annotated[Path, typer.Argument(metavar="DIR", help="A study's --out folder.")],
    second: Annotated[Path, typer.Argument(metavar="DIR", help="Another one.")],
    json: Json = False,
) -> int:
    """Say what differs between two studies, and whether the difference is more than chance."""
    from aftershock.study import compare_studies, load_study

    comparison = compare_studies(load_study(first), load_study(second))
    if json:
        print_json(comparison)
    else:
        console.print(comparison.text(), soft_wrap=True, markup=False)
    return 0
