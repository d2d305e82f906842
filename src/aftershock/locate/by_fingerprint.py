"""Find the changed words of a model with nothing but the fingerprint that was taken while it was clean."""

import numpy as np

from aftershock.detect import (
    Fingerprint,
    LineSums,
    Syndromes,
    TensorPrint,
    as_named,
    differences,
    line_sums,
    syndromes,
    tensor_digest,
    verify,
)
from aftershock.errors import InputError
from aftershock.locate.changes import Ambiguous, Located, Restored, WordChanges, gather
from aftershock.locate.decoding import decode
from aftershock.locate.peeling import peel
from aftershock.models import FileWords, LiveWords, ModelWords, Progress, TensorWords, quiet


def locate_by_fingerprint(
    words: FileWords | LiveWords, fingerprint: Fingerprint, key: bytes | None = None, progress: Progress = quiet
) -> Located:
    """The changed words of every tensor that differs from its fingerprint, headers and settings files among them.

    Files are read as the fingerprint says, so that damage in a file's own table does not hinder. Only tensors that
    differ are read again: once for their sums or syndromes, once to prove by their digest that the words found are the
    right ones. Tensors for which that fails are `ambiguous`; nothing in `changes` is a guess.

    Raises InputError as `verify` does, and where tensors or files are missing or have another size, shape or type.
    """
    verification = verify(words, fingerprint, key, progress)
    if gone := (*verification.missing, *verification.resized, *verification.reshaped):
        raise InputError(
            f"{', '.join(gone[:5])}{' and others' if len(gone) > 5 else ''}: missing, or of another size, shape or "
            "type than in the fingerprint, which words can't mend; get the model again, or fingerprint this one"
        )
    named = as_named(fingerprint, words)
    prints = {clean.tensor.name: clean for clean in named.tensors}
    found = []
    for name in verification.differing:
        progress(f"locating the changed words of {name}")
        found.append(locate_in_tensor(words, prints[name], named.signatures[name], key))
    return Located(
        tuple(one for one in found if isinstance(one, WordChanges)),
        tuple(one for one in found if isinstance(one, Ambiguous)),
    )


def clean_digests(words: FileWords, fingerprint: Fingerprint) -> dict[str, str]:
    """The digest that each file has in the fingerprint, by its name; that of a model's only file by its name here."""
    return {name: file.digest for name, file in as_named(fingerprint, words).files.items()}


def locate_in_tensor(
    words: ModelWords, clean: TensorPrint, signature: LineSums | Syndromes, key: bytes | None = None
) -> WordChanges | Ambiguous:
    """The changed words of one tensor that differs, from its signature; proved by its digest.

    Reads the tensor twice, and besides only the rows where changes are looked for.
    """
    found = solve_tensor(words, clean.tensor, signature)
    if isinstance(found, Ambiguous):
        return found
    if tensor_digest(Restored(words, {clean.tensor.name: found}), clean.tensor, key) != clean.digest:
        return Ambiguous(clean.tensor, (), (), "the words that its sums tell do not restore it: too many words changed")
    return found


def solve_tensor(words: ModelWords, tensor: TensorWords, signature: LineSums | Syndromes) -> WordChanges | Ambiguous:
    """As `locate_in_tensor`, with one reading and without the proof."""

    def held(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return gather(words, tensor, rows, columns)

    if isinstance(signature, LineSums):
        return peel(differences(line_sums(words, tensor), signature), tensor, held)
    return decode(syndromes(words, tensor), signature, tensor, held)
