"""`aftershock locate`: find the changed words of a model."""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from aftershock.cli.output import Json, console, counted, print_json, say
from aftershock.errors import InputError

if TYPE_CHECKING:
    from aftershock.detect import Fingerprint
    from aftershock.locate import ChangedWord, Comparison, Findings, Located, TextVerdict
    from aftershock.models import FileWords, LoadedModel

EXIT_CORRUPTED = 3
MOST_SHOWN = 50
MOST_LINES = 12

Model = Annotated[str, typer.Argument(help="demo:NAME, a folder with safetensors, a .safetensors or a .gguf file.")]
OfFingerprint = Annotated[
    Path | None, typer.Option("--fingerprint", help="What `aftershock fingerprint` wrote while the model was clean.")
]
OfReference = Annotated[str | None, typer.Option("--reference", help="A clean copy of the model: any MODEL.")]
Key = Annotated[Path | None, typer.Option("--key", help="The key file that the fingerprint was made with.")]
OfText = Annotated[
    Path | None,
    typer.Option("--text", help="Some thousand words of several kinds, where there is neither of the others."),
]
Dtype = Annotated[str | None, typer.Option(help="With --text: float32, float16 or bfloat16; else as it is stored.")]
Device = Annotated[str, typer.Option(help="With --text: cpu, cuda, cuda:N.")]


@dataclass(frozen=True)
class Search:
    """What was found, in what, and by what."""

    words: "FileWords"
    located: "Located"
    fingerprint: "Fingerprint | None" = None
    comparison: "Comparison | None" = None
    reference: "FileWords | None" = None
    key: bytes | None = field(default=None, repr=False)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return self.located.clean and (self.comparison is None or self.comparison.equal)


def command(
    model: Model,
    fingerprint: OfFingerprint = None,
    reference: OfReference = None,
    text: OfText = None,
    key: Key = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    json: Json = False,
) -> int:
    """Find what is corrupted in a model: tensor, place, bits. Exit code 3 where something is."""
    if text is not None:
        only_text(fingerprint, reference, key)
        return search_by_text(model, text, dtype, device, json)
    only_with_text(dtype, device)
    found = search(model, fingerprint, reference, key)
    show(found, json)
    return 0 if found.clean else EXIT_CORRUPTED


def search(model: str, fingerprint: Path | None, reference: str | None, key: Path | None) -> Search:
    """Locate by whichever of the two was given."""
    from aftershock.detect import fingerprinted_words, load_fingerprint, read_key
    from aftershock.locate import locate_by_fingerprint, locate_by_words, suspect_words
    from aftershock.models import file_words

    if (fingerprint is None) == (reference is None):
        raise typer.BadParameter("give exactly one of --fingerprint, --reference and --text")
    if reference is not None:
        clean = file_words(reference, say)
        words = suspect_words(model, clean, say)
        comparison = locate_by_words(words, clean, say)
        return Search(words, comparison.located, comparison=comparison, reference=clean)
    assert fingerprint is not None
    secret = None if key is None else read_key(key)
    taken = load_fingerprint(fingerprint, secret)
    words = fingerprinted_words(model, taken, say)
    return Search(words, locate_by_fingerprint(words, taken, secret, say), fingerprint=taken, key=secret)


def only_text(*others: object) -> None:
    """Refuse what goes with files beside a text."""
    if any(other is not None for other in others):
        raise typer.BadParameter("--text goes alone: leave --fingerprint, --reference and --key out")


def only_with_text(dtype: str | None, device: str) -> None:
    """Refuse what goes with a text alone."""
    if dtype is not None or device != "cpu":
        raise typer.BadParameter("--dtype and --device go with --text: leave them out")


def loaded(model: str, dtype: str | None, device: str) -> "LoadedModel":
    """The model that a text is read with, in its own dtype if none is given. A hub id has its files nowhere else."""
    from aftershock.locate import stored_dtype
    from aftershock.models import file_words, load

    return load(model, dtype or stored_dtype(file_words(model, say)), device, say)


def read_text(path: Path) -> str:
    """A text file. Raises InputError where it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text {path} can't be read ({error}): give a UTF-8 text file") from error


def search_by_text(model: str, text: Path, dtype: str | None, device: str, json: bool) -> int:
    """Locate with nothing but the model and a text; returns the exit code."""
    from aftershock.locate import locate_by_text

    words = read_text(text)
    verdict = locate_by_text(loaded(model, dtype, device), words, progress=say)
    show_verdict(verdict, json)
    return 0 if verdict.clean else EXIT_CORRUPTED


def show_verdict(verdict: "TextVerdict", json: bool) -> None:
    """Print what a model and a text told, for people or as JSON."""
    if json:
        print_json(verdict)
        return
    if verdict.clean:
        console.print(f"no corruption found (loss {verdict.loss:.4f} nats a token)")
        return
    for bit in verdict.bits:
        place = f"{bit.parameter}{list(bit.element)} {bit.stored or f'bit {bit.bit}'}"
        value = "" if bit.clean is None else f" ({bit.found:g} -> {bit.clean:g})"
        falls = f"flipped back{value}, the loss falls by {bit.gain:.4f} ± {bit.error:.4f}"
        console.print(f"{place}: {falls}", soft_wrap=True, markup=False, highlight=False)
    for branch in verdict.branches:
        console.print(f"{branch.branch}: loss falls by {branch.gain:.4f} when scaled by {branch.alpha:g}", markup=False)
    console.print(f"most suspect: {', '.join(verdict.layers)}", soft_wrap=True, markup=False)
    console.print(
        f"{verdict.recovery}{f': {verdict.measure}' if verdict.measure else ''}; "
        f"loss {verdict.loss:.4f} -> {verdict.loss_after:.4f} nats a token",
        soft_wrap=True,
        markup=False,
    )


def show(found: Search, json: bool) -> None:
    """Print findings, for people or as JSON."""
    from aftershock.locate import findings

    report = findings(found.located, found.comparison)
    if json:
        print_json(report)
    else:
        _print(report)


def _print(report: "Findings") -> None:
    if report.clean:
        console.print("no corruption found")
        return
    for name, words in groupby(report.words[:MOST_SHOWN], key=lambda word: word.tensor):
        _print_tensor(name, list(words))
    if len(report.words) > MOST_SHOWN:
        console.print(f"and {len(report.words) - MOST_SHOWN:,} more words (--json lists them)", markup=False)
    for name, count in report.differing.items():
        console.print(f"{name}: {counted(count, 'differing word')}", soft_wrap=True, markup=False)
    for what in ("missing", "extra", "reshaped", "retyped"):
        for name in getattr(report, what):
            console.print(f"{name}: {what}", soft_wrap=True, markup=False)
    for one in report.ambiguous:
        lines = f"rows {_shortened(one.rows)}; columns {_shortened(one.columns)}"
        console.print(f"{one.tensor}: corrupted, but {one.why} ({lines})", soft_wrap=True, markup=False)


def _print_tensor(name: str, words: list["ChangedWord"]) -> None:
    first = words[0]
    layer = [] if first.layer is None else [f"layer {first.layer}"]
    what = ", ".join([first.component or first.format, *layer])
    console.print(f"{name} ({what})", soft_wrap=True, markup=False)
    table = Table("  where", "bits", "clean", "found", "value", box=None)
    for word in words:
        table.add_row(*_cells(word))
    console.print(table, markup=False)


def _cells(word: "ChangedWord") -> tuple[str, ...]:
    place = word.stored or (f"{list(word.element)}" if word.element is not None else f"byte {word.offset}")
    value = "" if word.clean_value is None else f"{word.clean_value:g} -> {word.found_value:g}"
    return f"  {place}", ", ".join(map(str, word.bits)), f"{word.clean:#x}", f"{word.found:#x}", value


def _shortened(lines: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, lines[:MOST_LINES])) or "any"
    return shown + (f" and {len(lines) - MOST_LINES:,} more" if len(lines) > MOST_LINES else "")
