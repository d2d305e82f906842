"""`aftershock repair`: put the clean words back, and prove it."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from aftershock.cli.locate import EXIT_CORRUPTED, Key, Model, OfFingerprint, OfReference, search, show
from aftershock.cli.output import Json, console, print_json


class Mended(BaseModel):
    """What `repair --json` prints: the files written, each proved by its digest, and the number of words put back."""

    files: tuple[str, ...]
    words: int


def command(
    model: Model,
    fingerprint: OfFingerprint = None,
    reference: OfReference = None,
    key: Key = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the whole model here; without it, mend it in place.")
    ] = None,
    json: Json = False,
) -> int:
    """Put the clean words back into a model's files and prove each file by its digest."""
    from aftershock.locate import clean_digests, repair_files, restore_files

    found = search(model, fingerprint, reference, key)
    if found.located.ambiguous:
        show(found, json)
        if not json:
            console.print("nothing was written: repair from a clean copy (--reference), or get the files again")
        return EXIT_CORRUPTED
    if found.comparison is not None and found.reference is not None:
        done = restore_files(found.words, found.comparison, found.reference, out)
    else:
        assert found.fingerprint is not None
        digests = clean_digests(found.words, found.fingerprint)
        done = repair_files(found.words, found.located, digests, out, found.key)
    if json:
        print_json(Mended(files=tuple(map(str, done.files)), words=done.words))
        return 0
    for path in done.files:
        console.print(f"written and proved: {path}", soft_wrap=True, markup=False)
    console.print(f"{done.words:,} words put back" if done.words else "no corruption found", markup=False)
    return 0
