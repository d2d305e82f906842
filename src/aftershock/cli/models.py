"""`aftershock models`: the demo models."""

from typing import Annotated

import typer
from rich.table import Table

from aftershock.cli.output import console, say

app = typer.Typer(help="List the demo models, or get one.", invoke_without_command=True)


@app.callback()
def show(context: typer.Context) -> None:
    """List the demo models."""
    if context.invoked_subcommand is not None:
        return
    from aftershock.models import demo_models

    table = Table("spec", "size", "licence", "what it is", box=None)
    for demo in demo_models():
        table.add_row(f"demo:{demo.name}", f"{demo.size / 1e6:.0f} MB", demo.licence, demo.description)
    console.print(table)


@app.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="smollm2-135m or gemma3-270m")]) -> None:
    """Download a demo model, check its SHA-256 and keep it in the cache."""
    from aftershock.models import pull

    console.print(str(pull(name.removeprefix("demo:"), say)), soft_wrap=True)
