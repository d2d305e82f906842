"""From bits found in a model that runs to the words of its files."""

from collections import defaultdict

import numpy as np

from aftershock.errors import InputError
from aftershock.locate.by_text.verdict import TextVerdict
from aftershock.locate.changes import Located, WordChanges, gather, word_changes
from aftershock.models import FileWords, TensorWords
from aftershock.numerics import format_of

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtype(words: FileWords) -> str:
    """The dtype that most bytes of a model's safetensors have; bfloat16 for other files."""
    sizes: dict[str, int] = defaultdict(int)
    for tensor in words.tensors:
        if tensor.format in _DTYPES:
            sizes[_DTYPES[tensor.format]] += tensor.size
    packed = any(name.lower().endswith(".gguf") for name in words.files)
    return "bfloat16" if packed or not sizes else max(sizes, key=lambda name: sizes[name])


def located_in_files(verdict: TextVerdict, words: FileWords, dtype: str) -> Located:
    """The words of safetensors that the bits of a verdict on their model, loaded in `dtype`, belong to.

    Raises InputError for a parameter that the files have not by that name and dtype.
    """
    tensors = {tensor.name: tensor for tensor in words.tensors}
    masks: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for bit in verdict.bits:
        tensor = tensors.get(bit.parameter)
        if tensor is None or bit.stored is not None or _DTYPES.get(tensor.format) != format_of(dtype).name:
            raise InputError(
                f"{bit.parameter} is not in the files as it is in memory ({dtype}): give an output folder (-o), "
                "into which the mended model is saved as safetensors"
            )
        masks[bit.parameter][int(np.ravel_multi_index(bit.element, tensor.shape))] ^= 1 << bit.bit
    changes = (_changes(words, tensors[name], own) for name, own in sorted(masks.items()))
    return Located(tuple(one for one in changes if len(one)), ())


def _changes(words: FileWords, tensor: TensorWords, masks: dict[int, int]) -> WordChanges:
    places = np.array([place for place, mask in masks.items() if mask], np.int64)
    flipped = np.array([mask for mask in masks.values() if mask], np.int64)
    rows, columns = np.divmod(places, tensor.columns)
    found = gather(words, tensor, rows, columns)
    return word_changes(tensor, rows, columns, found, found ^ flipped)
