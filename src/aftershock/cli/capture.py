"""`aftershock capture`: record what an engine computes."""

import json as json_format
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from aftershock.cli.output import Json, console, counted, print_json, say
from aftershock.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aftershock.capture import Bundle


PATIENCE = 1800.0
"""Seconds that an engine may take."""


class Batching(StrEnum):
    """How prompts run."""

    ONE_BY_ONE = "one_by_one"
    TOGETHER = "together"


class Captured(BaseModel):
    """What `capture --json` prints: the bundle, and how much is in it."""

    path: str
    engine: str
    version: str
    requests: int
    tokens: int
    passes: int
    records: int
    sampled: list[list[int]]


def command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE:MODEL", help="vllm, onnxruntime, llamacpp, openvino or transformers, a colon, a model."
        ),
    ],
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help="A prompt a line: .txt, or .jsonl with texts, token ids or messages.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder for the bundle.")],
    python: Annotated[Path | None, typer.Option(help="The interpreter of an environment that has the engine.")] = None,
    dtype: Annotated[str, typer.Option(help="As the engine names it: float32, bfloat16, ...")] = "float32",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to sample for each prompt.")] = 1,
    batching: Annotated[Batching, typer.Option(help="Whether prompts run one by one.")] = Batching.ONE_BY_ONE,
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 1,
    record: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Modules or components to record; all, where none is given."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the engine's own; the value may be JSON."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="End the engine after this long.")
    ] = PATIENCE,
    json: Json = False,
) -> int:
    """Record what an engine computes for some prompts, as a bundle."""
    from aftershock.capture import CaptureRequest, capture, engine_model, read_prompts
    from aftershock.models import cache_folder

    engine, _, model = what.partition(":")
    if not model:
        raise typer.BadParameter(f"{what} is no ENGINE:MODEL: write vllm:demo:smollm2-135m, for example")
    cache = cache_folder() / "engine-files"
    cache.mkdir(parents=True, exist_ok=True)
    request = CaptureRequest(
        model=str(engine_model(engine, model, say)),
        prompts=read_prompts(prompts),
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        batching=batching.value,
        threads=threads,
        record=tuple(record or ()),
        options=options_of(option),
        cache=str(cache),
    )
    show(out, capture(engine, request, out, python, timeout, say), json)
    return 0


def show(path: Path, bundle: "Bundle", json: bool) -> None:
    """Print what was captured, for people or as JSON."""
    manifest = bundle.manifest
    captured = Captured(
        path=str(path),
        engine=manifest.engine.name,
        version=manifest.engine.version,
        requests=len(manifest.requests),
        tokens=manifest.tokens,
        passes=len(manifest.passes),
        records=len(manifest.records),
        sampled=[list(request.sampled) for request in manifest.requests],
    )
    if json:
        print_json(captured)
        return
    console.print(
        f"{path}: {counted(captured.requests, 'request')}, {counted(captured.tokens, 'token')}, "
        f"{counted(captured.records, 'record')}, by {captured.engine} {captured.version}",
        soft_wrap=True,
        markup=False,
    )


def options_of(pairs: "Sequence[str] | None") -> dict[str, Any]:
    """The options that KEY=VALUE say; a value may be JSON. Raises InputError for what is not so."""
    return dict(_option(pair) for pair in pairs or ())


def _option(pair: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals:
        raise InputError(f"option {pair} has no value: write KEY=VALUE")
    try:
        return name, json_format.loads(value)
    except ValueError:
        return name, value
