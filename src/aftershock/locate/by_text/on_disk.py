"""From bits found in a model that runs to the words of its files."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from aftershock.locate.by_text.verdict import FlippedBit, TextVerdict
from aftershock.locate.changes import Located, WordChanges, gather, word_changes
from aftershock.models import FileWords, LoadedModel, StoredWords, TensorWords

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtype(words: FileWords) -> str:
    """The dtype that most bytes of a model's safetensors have; bfloat16 for other files."""
    sizes: dict[str, int] = defaultdict(int)
    for tensor in words.tensors:
        if tensor.format in _DTYPES:
            sizes[_DTYPES[tensor.format]] += tensor.size
    packed = any(name.lower().endswith(".gguf") for name in words.files)
    return "bfloat16" if packed or not sizes else max(sizes, key=lambda name: sizes[name])


def located_in_files(verdict: TextVerdict, model: LoadedModel, words: FileWords) -> Located | None:
    """The words of a model's files that the bits of a verdict on it belong to: those of safetensors that are loaded as
    they are, and those of a GGUF file's blocks. None where the files have some bit in no such word."""
    masks: dict[TensorWords, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for bit in verdict.bits:
        found = _plain(bit, model, words) if bit.stored is None else _packed(bit, model.stored, words)
        if found is None:
            return None
        masks[found.tensor][found.place] ^= found.mask
    changes = (_changes(words, tensor, own) for tensor, own in sorted(masks.items(), key=lambda item: item[0].name))
    return Located(tuple(one for one in changes if len(one)), ())


@dataclass(frozen=True)
class _StoredBit:
    """A bit, as a mask, of a word of a tensor, counted from the tensor's first."""

    tensor: TensorWords
    place: int
    mask: int


def _plain(bit: FlippedBit, model: LoadedModel, words: FileWords) -> _StoredBit | None:
    """A bit of a parameter that the files have by that name and dtype."""
    for tensor in words.tensors:
        if tensor.name == bit.parameter and _DTYPES.get(tensor.format) == model.format.name:
            return _StoredBit(tensor, int(np.ravel_multi_index(bit.element, tensor.shape)), 1 << bit.bit)
    return None


def _packed(bit: FlippedBit, stored: StoredWords | None, words: FileWords) -> _StoredBit | None:
    """A bit of a block of a GGUF file."""
    if stored is None or stored.offsets is None:
        return None
    form, (row, column) = stored.forms[bit.parameter], bit.element
    byte = int(stored.offsets(bit.parameter)[row]) + column // form.elements * form.size + bit.bit // 8
    for tensor in words.tensors:
        for extent in tensor.extents:
            if 0 <= byte - extent.offset < extent.size:
                place, inside = divmod(byte - extent.offset, tensor.width)
                return _StoredBit(tensor, place, 1 << 8 * inside + bit.bit % 8)
    return None


def _changes(words: FileWords, tensor: TensorWords, masks: dict[int, int]) -> WordChanges:
    places = np.array([place for place, mask in masks.items() if mask], np.int64)
    flipped = np.array([mask for mask in masks.values() if mask], np.int64)
    rows, columns = np.divmod(places, tensor.columns)
    found = gather(words, tensor, rows, columns)
    return word_changes(tensor, rows, columns, found, found ^ flipped)
