"""`aftershock models`: the demo models."""

from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table

from aftershock.cli.output import Json, console, print_json, say

app = typer.Typer(help="List the demo models, or get one.", invoke_without_command=True)


class Listed(BaseModel):
    """A demo model: how to name it, its size in bytes, its licence, what it is."""

    spec: str
    size: int
    licence: str
    description: str


class Listing(BaseModel):
    """What `models --json` prints."""

    models: list[Listed]


class Pulled(BaseModel):
    """What `models pull --json` prints: where the file lies."""

    path: str


@app.callback()
def show(context: typer.Context, json: Json = False) -> None:
    """List the demo models."""
    if context.invoked_subcommand is not None:
        return
    from aftershock.models import demo_models

    models = [
        Listed(spec=f"demo:{demo.name}", size=demo.size, licence=demo.licence, description=demo.description)
        for demo in demo_models()
    ]
    if json:
        print_json(Listing(models=models))
        return
    table = Table("spec", "size", "licence", "what it is", box=None)
    for model in models:
        table.add_row(model.spec, f"{model.size / 1e6:.0f} MB", model.licence, model.description)
    console.print(table)


@app.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="smollm2-135m or gemma3-270m")], json: Json = False) -> None:
    """Download a demo model, check its SHA-256 and keep it in the cache."""
    from aftershock.models import pull

    path = str(pull(name.removeprefix("demo:"), say))
    if json:
        print_json(Pulled(path=path))
    else:
        console.print(path, soft_wrap=True, markup=False)
