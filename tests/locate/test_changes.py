"""Lists of changed words, and models read with them put back."""

import numpy as np
import pytest
import torch
from flipped import DTYPES, as_read, equal, flip, integers, one_tensor

from aftershock.locate import Restored, word_changes
from aftershock.locate.changes import gather
from aftershock.models import TensorWords


def test_changes_are_sorted_and_unsigned():
    tensor = TensorWords("weight", "bfloat16", (4, 5), 40, 4, 5, 2)
    changes = word_changes(tensor, *(np.array(axis) for axis in ([3, 0, 0], [1, 4, 2], [-1, 5, 7], [-2, 13, 3])))
    assert changes.rows.tolist() == [0, 0, 3]
    assert changes.columns.tolist() == [2, 4, 1]
    assert changes.found.tolist() == [7, 5, 65535]
    assert changes.clean.tolist() == [3, 13, 65534]
    assert changes.bits == ((2,), (3,), (0,))
    assert len(changes) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_are_gathered_from_anywhere(dtype):
    words = one_tensor((3000, 700), dtype)
    (tensor,) = words.tensors
    rows, columns = np.array([2999, 0, 1500, 1500, 3]), np.array([699, 0, 5, 4, 2])
    assert gather(words, tensor, rows, columns).tolist() == [
        int(integers(words)[row, column]) for row, column in zip(rows, columns, strict=True)
    ]
    assert gather(words, tensor, rows[:0], columns[:0]).tolist() == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_is_read_as_if_changes_were_put_back(dtype):
    words = one_tensor((80, 70), dtype)
    (tensor,) = words.tensors
    clean = as_read(words)
    flip(words, [(0, 0), (79, 69), (40, 3)], 7)
    now = as_read(words)
    axes = np.array([0, 79, 40]), np.array([0, 69, 3])
    changes = word_changes(tensor, *axes, gather(words, tensor, *axes), clean[0][axes].long().numpy())
    restored = Restored(words, {"weight": changes})
    assert equal(as_read(restored), clean)
    assert equal([restored.read(tensor, 39, 41)], [clean[0][39:41]])
    assert equal(as_read(words), now)  # nothing was written
    assert restored.tensors == words.tensors
    assert torch.equal(Restored(words, {}).read(tensor, 0, 80), now[0])
