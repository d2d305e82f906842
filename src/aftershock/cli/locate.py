"""`aftershock locate`: find the changed words of a model."""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from aftershock.cli.output import Json, console, print_json, say

if TYPE_CHECKING:
    from aftershock.detect import Fingerprint
    from aftershock.locate import ChangedWord, Comparison, Findings, Located
    from aftershock.models import FileWords

EXIT_CORRUPTED = 3
MOST_SHOWN = 50
MOST_LINES = 12

Model = Annotated[str, typer.Argument(help="demo:NAME, a folder with safetensors, a .safetensors or a .gguf file.")]
OfFingerprint = Annotated[
    Path | None, typer.Option("--fingerprint", help="What `aftershock fingerprint` wrote while the model was clean.")
]
OfReference = Annotated[str | None, typer.Option("--reference", help="A clean copy of the model: any MODEL.")]
Key = Annotated[Path | None, typer.Option("--key", help="The key file that the fingerprint was made with.")]


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
    key: Key = None,
    json: Json = False,
) -> int:
    """Find which words of a model's files changed: tensor, place, bits. Exit code 3 where some did."""
    found = search(model, fingerprint, reference, key)
    show(found, json)
    return 0 if found.clean else EXIT_CORRUPTED


def search(model: str, fingerprint: Path | None, reference: str | None, key: Path | None) -> Search:
    """Locate by whichever of the two was given."""
    from aftershock.detect import fingerprinted_words, load_fingerprint, read_key
    from aftershock.locate import locate_by_fingerprint, locate_by_words, suspect_words
    from aftershock.models import file_words

    if (fingerprint is None) == (reference is None):
        raise typer.BadParameter("give one of --fingerprint and --reference")
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
        console.print(f"{name}: {count:,} words differ", soft_wrap=True, markup=False)
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
