"""`aftershock replay`: repeat one stored trial."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from aftershock.cli.output import Json, console, print_json, say

if TYPE_CHECKING:
    from aftershock.study import Replay

EXIT_DIFFERENT = 4
BAR = 30


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A study's --out folder.")],
    trial: Annotated[int, typer.Argument(help="Number of the trial.")],
    json: Json = False,
) -> int:
    """Repeat one trial, show its path through the layers, and say whether it equals the stored record."""
    from aftershock.study import replay_trial

    replay = replay_trial(folder, trial, say)
    if json:
        print_json(replay)
    else:
        _show(replay)
    return 0 if replay.equal or not replay.same_plan else EXIT_DIFFERENT


def _show(replay: "Replay") -> None:
    found = replay.found
    console.print(f"[bold]trial {found.trial}[/bold]")
    for line in found.faults:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    for strike in found.strikes[:8]:
        where = "" if strike.item is None else f" in {strike.item}"
        console.print(
            f"  {strike.tensor}{list(strike.index)}{where}: {strike.old_value:g} -> {strike.new_value:g} "
            f"(words {strike.old_bits:#x} -> {strike.new_bits:#x})",
            markup=False,
            soft_wrap=True,
        )
    _show_path(found.residual_error or ())
    changed = [item for item in found.items if item.outcome != "masked"]
    console.print(f"\n{len(found.items) - len(changed)} of {len(found.items)} items masked")
    table = Table("item", "outcome", "first difference", "output", box=None)
    for item in changed:
        place = "" if item.first_difference is None else str(item.first_difference)
        table.add_row(item.item, item.outcome, place, repr(item.output or "")[:60])
    if changed:
        console.print(table, markup=False)
    if replay.equal:
        console.print("[green]equals the stored record, bit for bit[/green]")
    elif replay.same_plan:
        console.print("[red]differs from the stored record[/red]")
    else:
        console.print(
            "[yellow]differs from the stored record, which was made with other versions, another device, "
            "another number of threads or another model[/yellow]"
        )


def _show_path(errors: tuple[float, ...]) -> None:
    """One line a layer: relative error of the residual stream, on a bar from 1e-8 to 1e2."""
    table = Table("after", "relative error", "", title="residual stream", title_justify="left", box=None)
    for number, error in enumerate(errors):
        name = "embedding" if number == 0 else f"layer {number - 1}"
        decades = 10.0 if math.isinf(error) else math.log10(error) + 8 if error > 0 else 0.0
        table.add_row(name, f"{error:.2e}", "█" * round(BAR * min(max(decades, 0.0), 10.0) / 10))
    console.print(table)
