"""`aftershock fingerprint`: what tells later whether a model is still the same."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from aftershock.cli.output import Json, console, counted, print_json, say
from aftershock.errors import InputError

Key = Annotated[
    Path | None,
    typer.Option(help="A file of 32 random bytes: who lacks it can't forge a fingerprint (head -c 32 /dev/urandom)."),
]


class ProfileName(StrEnum):
    """The two profiles of a fingerprint."""

    EXACT = "exact"
    SMALL = "small"


class Taken(BaseModel):
    """What `fingerprint --json` prints: the file and its size, and the tensors, files and bytes that it is of."""

    path: str
    profile: str
    keyed: bool
    size: int
    tensors: int
    files: int
    bytes: int


def command(
    model: Annotated[str, typer.Argument(help="demo:NAME, a folder with safetensors, a .safetensors or a .gguf file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the fingerprint.")],
    profile: Annotated[
        ProfileName, typer.Option(help="exact: sums of rows and columns; small: at most 0.2 % of the model.")
    ] = ProfileName.EXACT,
    key: Key = None,
    json: Json = False,
) -> int:
    """Take the fingerprint of a model's files while they are good."""
    from aftershock.detect import check_replaceable, read_key, save_fingerprint, take_fingerprint
    from aftershock.models import file_words

    secret = None if key is None else read_key(key)
    words = file_words(model, say)
    if out.resolve() in {(words.folder / name).resolve() for name in words.files}:
        raise InputError(f"{out} is a file of the model itself: give another file to write the fingerprint to (-o)")
    check_replaceable(out)
    fingerprint = take_fingerprint(words, profile.value, secret, say)
    save_fingerprint(fingerprint, out, secret)
    taken = Taken(
        path=str(out),
        profile=fingerprint.profile,
        keyed=fingerprint.keyed,
        size=out.stat().st_size,
        tensors=sum(one.tensor.is_tensor for one in fingerprint.tensors),
        files=len(fingerprint.files),
        bytes=sum(file.size for file in fingerprint.files.values()),
    )
    if json:
        print_json(taken)
    else:
        console.print(
            f"{out}: {profile.value} fingerprint of {counted(taken.files, 'file')}, {taken.bytes / 1e6:,.1f} MB; "
            f"{taken.size / 1e6:,.2f} MB, {100 * taken.size / taken.bytes:.2f} %",
            soft_wrap=True,
            markup=False,
        )
    return 0
