"""`aftershock diagnose`: why an engine answers worse than its reference."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from aftershock.cli.capture import PATIENCE, options_of
from aftershock.cli.output import Json, console, print_json, say
from aftershock.errors import InputError

if TYPE_CHECKING:
    from aftershock.capture import Bundle, Prompt
    from aftershock.diagnose import Diagnosis, Finding
    from aftershock.models import LoadedModel

EXIT_DIVERGENT = 3
EXIT_NOT_UNDERSTOOD = 4
NEW_TOKENS = 8
"""Tokens that an engine samples after each prompt."""

_COLOURS = {"agrees": "green", "differs": "red", "not checked": "dim"}


@dataclass(frozen=True)
class _Run:
    """How an engine is to run, as the command line says it."""

    dtype: str | None = None
    python: Path | None = None
    option: Sequence[str] | None = None
    timeout: float | None = None


def command(
    reference: Annotated[str, typer.Option(help="The same model in transformers: any MODEL.")],
    target: Annotated[
        str, typer.Option(metavar="ENGINE:MODEL|BUNDLE", help="What to capture, or what `aftershock capture` wrote.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A prompt a line: .txt, or .jsonl. A bundle's own; built-in ones."),
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(metavar="BUNDLE", help="The same engine, run otherwise: batched, cached.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="With ENGINE:MODEL: what the engine runs in.")] = None,
    python: Annotated[Path | None, typer.Option(help="With ENGINE:MODEL: the interpreter that has the engine.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With ENGINE:MODEL: an option of the engine's own; may be JSON."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="With ENGINE:MODEL: end the engine after this long.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="A folder for the report.")] = None,
    known: Annotated[Path | None, typer.Option("--map", metavar="FILE", help="Which value is which point.")] = None,
    save_map: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the map that was found.")] = None,
    json: Json = False,
) -> int:
    """Find the first component of a serving engine that is wrong, and why. Exit code 3 where one is."""
    from aftershock.capture import read_bundle
    from aftershock.diagnose import alignment_with, diagnose, load_alignment
    from aftershock.report import write_diagnosis

    run = _Run(dtype, python, option, timeout)
    with _folder(out) as folder:
        model, bundle, asked = _pair(reference, target, prompts, run, folder)
        sources = None if known is None else load_alignment(known)
        if save_map is not None:
            alignment_with(model, bundle, sources).save(save_map)
            say(f"map: {save_map}")
        found = diagnose(model, bundle, asked, [read_bundle(path) for path in beside or ()], sources, say)
    if out is not None:
        say(f"report: {write_diagnosis(found, shlex.join(['aftershock', *sys.argv[1:]]), out)}")
    if json:
        print_json(found)
    else:
        show(found)
    if not found.understood and not found.divergent:
        return EXIT_NOT_UNDERSTOOD
    return EXIT_DIVERGENT if found.divergent else 0


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where a capture goes: the report's folder, else one in the cache, which stays only where the engine failed."""
    if out is not None:
        yield out
        return
    from aftershock.models import cache_folder

    cache_folder().mkdir(parents=True, exist_ok=True)
    own = Path(mkdtemp(prefix="diagnose-", dir=cache_folder()))
    try:
        yield own
    finally:
        if not any(own.glob("*.unfinished")):
            rmtree(own)


def _pair(
    reference: str, target: str, prompts: Path | None, run: _Run, folder: Path
) -> "tuple[LoadedModel, Bundle, Sequence[Prompt] | None]":
    """The reference with its weights rounded as the target has them, the target's bundle, and the prompts, None where
    they are not known. What is captured goes into `folder`."""
    from aftershock.capture import ENGINES, read_bundle, read_prompts

    asked = None if prompts is None else read_prompts(prompts)
    engine, colon, spec = target.partition(":")
    if engine in ENGINES and spec:
        model = _reference(reference, run.dtype or "float32")
        return _captured(model, engine, spec, asked, run, folder / "bundle")
    if colon and not Path(target).exists():
        raise InputError(
            f"target {target} is neither the folder of a bundle nor ENGINE:MODEL: give one of {', '.join(ENGINES)}, a "
            "colon, and a model"
        )
    if run != _Run():
        raise typer.BadParameter(
            f"--dtype, --python, --option and --timeout go with ENGINE:MODEL, and {target} is a bundle: leave them out"
        )
    bundle = read_bundle(target)
    return _reference(reference, bundle.manifest.dtype), bundle, asked


def _reference(spec: str, dtype: str) -> "LoadedModel":
    from aftershock.diagnose import reference_dtype
    from aftershock.models import load

    return load(spec, reference_dtype(dtype), progress=say)


def _captured(
    model: "LoadedModel",
    engine: str,
    spec: str,
    asked: "Sequence[Prompt] | None",
    run: _Run,
    folder: Path,
) -> "tuple[LoadedModel, Bundle, Sequence[Prompt]]":
    from aftershock.capture import CaptureRequest, capture, engine_model
    from aftershock.diagnose import check_checkpoint, default_prompts
    from aftershock.models import cache_folder

    wanted = tuple(asked) if asked is not None else default_prompts(model)
    cache = cache_folder() / "engine-files"
    cache.mkdir(parents=True, exist_ok=True)
    path = engine_model(engine, spec, say)
    check_checkpoint(model, spec, path)
    request = CaptureRequest(
        model=str(path),
        prompts=wanted,
        max_new_tokens=NEW_TOKENS,
        dtype=run.dtype or "float32",
        options=options_of(run.option),
        cache=str(cache),
    )
    return model, capture(engine, request, folder, run.python, run.timeout or PATIENCE, say), wanted


def show(found: "Diagnosis") -> None:
    """Print a diagnosis for people."""
    console.print(found.verdict, style="bold", soft_wrap=True, markup=False)
    for finding in found.findings:
        _show_finding(finding)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for rung in found.rungs:
        table.add_row(rung.name, f"[{_COLOURS[rung.state]}]{rung.state}[/]", Text(rung.said))
    console.print(table)
    for said in (found.reproduce, *(f"can't be seen here: {one}" for one in found.invisible)):
        if said:
            console.print(said, style="dim", soft_wrap=True, markup=False)


def _show_finding(finding: "Finding") -> None:
    from aftershock.report import layer_list

    where = f", layers {layer_list(finding.layers)}" if finding.layers else ""
    console.print(f"{finding.component}: {finding.cause}{where}", soft_wrap=True, markup=False)
    console.print(f"  {finding.evidence}", soft_wrap=True, markup=False)
