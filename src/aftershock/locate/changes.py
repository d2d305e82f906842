"""Words that differ from what they should be, and a model read with them put back."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from aftershock.models import ModelWords, TensorWords

_RUN = 1 << 20
"""Words that lie no more bytes apart are read in one go."""


@dataclass(frozen=True, eq=False)
class WordChanges:
    """Changed words of one tensor, sorted by row and column.

    `rows`, `columns`: int64, shape (n,), places in the tensor's matrix of words. `found`, `clean`: int64, shape (n,),
    the words as they are and as they should be, as unsigned integers of the tensor's width.
    """

    tensor: TensorWords
    rows: np.ndarray
    columns: np.ndarray
    found: np.ndarray
    clean: np.ndarray

    @property
    def bits(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the flipped bits of each change, ascending."""
        flipped = (self.found ^ self.clean)[:, None] >> np.arange(8 * self.tensor.width) & 1
        return tuple(tuple(int(bit) for bit in np.flatnonzero(row)) for row in flipped)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Ambiguous:
    """A tensor that is known to differ, but not which of its words: the rows and columns of words among which they lie
    (empty where any word may), and why they can't be told."""

    tensor: TensorWords
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    why: str


@dataclass(frozen=True, eq=False)
class Located:
    """What is wrong with a model: the changed words of the tensors whose changes are known, and the tensors whose are
    not. Both empty where nothing is wrong."""

    changes: tuple[WordChanges, ...]
    ambiguous: tuple[Ambiguous, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.changes and not self.ambiguous


def word_changes(
    tensor: TensorWords, rows: np.ndarray, columns: np.ndarray, found: np.ndarray, clean: np.ndarray
) -> WordChanges:
    """Changes in any order (int64, shape (n,) each); `found` and `clean` may be signed."""
    order = np.lexsort((columns, rows))
    mask = (1 << 8 * tensor.width) - 1
    return WordChanges(tensor, rows[order], columns[order], found[order] & mask, clean[order] & mask)


def gather(words: ModelWords, tensor: TensorWords, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The words at some places (int64 arrays of shape (n,)), as signed integers: int64, shape (n,)."""
    found = np.empty(len(rows), np.int64)
    order = np.argsort(rows, kind="stable")
    step, start = max(1, _RUN // max(1, tensor.row_bytes)), 0
    while start < len(order):
        first = int(rows[order[start]])
        stop = int(np.searchsorted(rows[order], first + step))
        picked = order[start:stop]
        held = words.read(tensor, first, int(rows[picked[-1]]) + 1)
        index = (torch.from_numpy(axis).to(held.device) for axis in (rows[picked] - first, columns[picked]))
        found[picked] = held[tuple(index)].long().cpu().numpy()
        start = stop
    return found


@dataclass(frozen=True)
class Restored:
    """A model's words as they are with changes put back. Nothing is written: rows are changed as they are read."""

    words: ModelWords
    changes: Mapping[str, WordChanges]

    @property
    def tensors(self) -> tuple[TensorWords, ...]:
        """Those of the model."""
        return self.words.tensors

    def read(self, tensor: TensorWords, first: int, last: int) -> torch.Tensor:
        """As `ModelWords.read`, also of a tensor that is read in other rows and columns than its changes were found."""
        held = self.words.read(tensor, first, last)
        if tensor.name not in self.changes:
            return held
        offsets, values = _bytes_of(self.changes[tensor.name])
        begin = first * tensor.row_bytes
        low, high = np.searchsorted(offsets, [begin, last * tensor.row_bytes])
        if low == high:
            return held
        held = held.clone()
        places = torch.from_numpy(offsets[low:high] - begin).to(held.device)
        held.view(torch.uint8).view(-1)[places] = torch.from_numpy(values[low:high]).to(held.device)
        return held


def _bytes_of(changes: WordChanges) -> tuple[np.ndarray, np.ndarray]:
    """Offset in the tensor of each byte of the clean words, int64 and ascending, and the bytes, uint8. Those that fill
    up the last word are zero, as they are in the tensor."""
    tensor, each = changes.tensor, np.arange(changes.tensor.width)
    offsets = ((changes.rows * tensor.columns + changes.columns)[:, None] * tensor.width + each).reshape(-1)
    values = (changes.clean[:, None] >> 8 * each & 255).astype(np.uint8).reshape(-1)
    return offsets, values
