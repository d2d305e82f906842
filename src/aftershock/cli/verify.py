"""`aftershock verify`: whether a model is still the one of its fingerprint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftershock.cli.fingerprint import Key
from aftershock.cli.output import Json, console, counted, print_json, say

if TYPE_CHECKING:
    from aftershock.detect import Verification

EXIT_CORRUPTED = 3


def command(
    model: Annotated[str, typer.Argument(help="demo:NAME, a folder with safetensors, a .safetensors or a .gguf file.")],
    fingerprint: Annotated[Path, typer.Option(metavar="FILE", help="What `aftershock fingerprint` wrote.")],
    key: Key = None,
    json: Json = False,
) -> int:
    """Check a model's files with a fingerprint: exit code 0 where all is as it was, 3 where something changed."""
    from aftershock.detect import fingerprinted_words, load_fingerprint, read_key, verify

    secret = None if key is None else read_key(key)
    known = load_fingerprint(fingerprint, secret)
    verification = verify(fingerprinted_words(model, known, say), known, secret, say)
    if json:
        print_json(verification)
    else:
        show(verification)
    return 0 if verification.clean else EXIT_CORRUPTED


def show(verification: "Verification") -> None:
    """One line for each finding, and one for the whole."""
    findings = {
        "differs": verification.differing,
        "has another shape or type": verification.reshaped,
        "has another size": verification.resized,
        "is missing": verification.missing,
        "is new": verification.extra,
    }
    for what, names in findings.items():
        for name in names:
            console.print(f"{name} {what}", soft_wrap=True, markup=False)
    if verification.checked == len(set(verification.differing)) > 1:
        console.print("every tensor differs: is the fingerprint of this model, and of these weights?")
    verdict = "clean" if verification.clean else "CORRUPTED"
    console.print(
        f"{verdict}: {_what(verification)}, {verification.bytes / 1e6:,.1f} MB in {verification.seconds:.1f} s",
        soft_wrap=True,
        markup=False,
    )


def _what(verification: "Verification") -> str:
    """What was compared: `272 tensors and 1 header`."""
    beside = {"header": verification.headers, "settings file": verification.settings}
    *others, last = [
        counted(verification.checked, "tensor"),
        *(counted(number, what) for what, number in beside.items() if number),
    ]
    return f"{', '.join(others)} and {last}" if others else last
