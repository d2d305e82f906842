"""`aftershock repair`: put the clean words back, and prove it."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from aftershock.cli.locate import (
    EXIT_CORRUPTED,
    Device,
    Dtype,
    Key,
    Model,
    OfFingerprint,
    OfReference,
    OfText,
    loaded,
    only_text,
    only_with_text,
    read_text,
    search,
    show,
    show_verdict,
)
from aftershock.cli.output import Json, console, counted, print_json, say
from aftershock.errors import InputError


class Mended(BaseModel):
    """What `repair --json` prints: the files written, each proved by its digest, and the number of words put back."""

    files: tuple[str, ...]
    words: int


def command(
    model: Model,
    fingerprint: OfFingerprint = None,
    reference: OfReference = None,
    text: OfText = None,
    key: Key = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A folder for the whole mended model; without it, it is mended in place."),
    ] = None,
    json: Json = False,
) -> int:
    """Put the clean words back into a model's files and prove each file by its digest."""
    from aftershock.locate import clean_digests, repair_files, restore_files

    if text is not None:
        only_text(fingerprint, reference, key)
        return by_text(model, text, dtype, device, out, json)
    only_with_text(dtype, device)
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
    console.print(f"{counted(done.words, 'word')} put back" if done.words else "no corruption found", markup=False)
    return 0


def by_text(model: str, text: Path, dtype: str | None, device: str, out: Path | None, json: bool) -> int:
    """Flip back what a text finds: in the words of the files, or, where it is none of those, in a copy saved as
    safetensors."""
    from aftershock.locate import located_in_files, mend_by_text, patch_files
    from aftershock.models import file_words, save

    words = file_words(model)
    running = loaded(model, dtype, device)
    verdict = mend_by_text(running, read_text(text), progress=say)
    show_verdict(verdict, json)
    if not verdict.bits:
        return 0 if verdict.clean else EXIT_CORRUPTED
    located = located_in_files(verdict, running, words)
    if located is not None:
        files = patch_files(words, located, out).files
    elif out is not None:
        files = save(running, out)
    else:
        raise InputError(
            f"what was found is no word of {model} as it is stored: give an output folder (-o), into which the mended "
            "model is saved as safetensors"
        )
    for path in files:
        say(f"written: {path}")
    return 0
