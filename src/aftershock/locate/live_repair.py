"""Put the clean words back into live modules, in place."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch

from aftershock.detect import Fingerprint, tensor_digest
from aftershock.errors import ContractError, InputError
from aftershock.locate.changes import Ambiguous, Located, WordChanges, gather, word_changes
from aftershock.models import LiveWords, live_words

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type of an element by its bytes."""


def repair_module(
    module: torch.nn.Module, located: Located, fingerprint: Fingerprint | None = None, key: bytes | None = None
) -> tuple[WordChanges, ...]:
    """Put the clean words into live parameters and buffers, in place, on whatever device; returns what was there.

    Words are written through integer views, so that NaN is a word like any other, and parameters need not be
    contiguous. With a fingerprint each tensor is proved by its digest after. Where that or anything else fails, all is
    put back as it was.

    Raises InputError where tensors are ambiguous and where a tensor is not the clean one after, ContractError where a
    word does not read back as it was written.
    """
    if located.ambiguous:
        names = ", ".join(one.tensor.name for one in located.ambiguous[:5])
        raise InputError(f"the changed words of {names} can't be told: load the model again")
    words = live_words(module)
    clean = {} if fingerprint is None else {one.tensor.name: one.digest for one in fingerprint.tensors}
    replaced = []
    with ExitStack() as undo:
        for changes in located.changes:
            before = _as_now(words, changes)
            undo.callback(_write, words, replace(before, clean=before.found))
            _write(words, before)
            after = _as_now(words, before)
            if not np.array_equal(after.found, after.clean):
                raise ContractError(f"words of {changes.tensor.name} do not read back as they were written")
            replaced.append(before)
        for changes in replaced:
            tensor = changes.tensor
            if tensor.name in clean and tensor_digest(words, tensor, key) != clean[tensor.name]:
                raise InputError(
                    f"{tensor.name} with the words put back is still not the clean tensor: it changed in the meantime; "
                    "everything is as it was, locate again"
                )
        undo.pop_all()
    return tuple(replaced)


def mend_in_module(
    module: torch.nn.Module, found: WordChanges | Ambiguous, fingerprint: Fingerprint, key: bytes | None = None
) -> bool:
    """Put a tensor's clean words back as `repair_module` does; False where that can't be, all being as it was then."""
    if isinstance(found, Ambiguous):
        return False
    try:
        repair_module(module, Located((found,), ()), fingerprint, key)
    except (ContractError, InputError):
        return False
    return True


def _as_now(words: LiveWords, changes: WordChanges) -> WordChanges:
    """The changes with the words that are found there now."""
    places = changes.tensor, changes.rows, changes.columns
    return word_changes(*places, gather(words, *places), changes.clean)


def _write(words: LiveWords, changes: WordChanges) -> None:
    """Write the clean words, whatever is there now."""
    _flip(words.tensor(changes.tensor.name), _as_now(words, changes))


@torch.inference_mode()
def _flip(tensor: torch.Tensor, changes: WordChanges) -> None:
    """Flip in place the bits in which the words found differ from the clean ones."""
    width, size = changes.tensor.width, tensor.element_size()
    flat, inside = np.divmod((changes.rows * changes.tensor.columns + changes.columns) * width, size)
    elements, inverse = np.unique(flat, return_inverse=True)
    masks = np.zeros(len(elements), np.int64)
    np.bitwise_xor.at(masks, inverse, (changes.found ^ changes.clean) << 8 * inside)
    view = tensor.detach().view(_INTEGERS[size]).view(tensor.shape or (1,))
    index = tuple(torch.from_numpy(axis).to(view.device) for axis in np.unravel_index(elements, tuple(view.shape)))
    view[index] = view[index] ^ torch.from_numpy(masks).to(view.device, view.dtype)
