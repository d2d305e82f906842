"""Syndromes against plain Python."""

import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_words import TENSORS, flip, raw, words_of

from aftershock.detect import PRIME, blocks_of, correctable, syndromes
from aftershock.models import TensorWords


def plain_syndromes(data: bytes, bounds: list[int], count: int) -> list[list[int]]:
    data += b"\0" * (len(data) % 2)
    words = [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]
    return [
        [sum(pow(j + 1, k, PRIME) * word for j, word in enumerate(words[begin:end])) % PRIME for k in range(count)]
        for begin, end in pairwise(bounds)
    ]


@pytest.mark.parametrize("name", TENSORS)
def test_syndromes_are_those_of_plain_python(name):
    words, tensor = words_of(TENSORS[name])
    found = syndromes(words, tensor).values
    assert found.shape == (1, 2 * correctable(tensor))
    assert found.tolist() == plain_syndromes(raw(TENSORS[name]), blocks_of(tensor).tolist(), found.shape[1])


@given(st.binary(max_size=300))
def test_syndromes_of_any_bytes(data):
    words, tensor = words_of(torch.tensor(list(data), dtype=torch.uint8))
    found = syndromes(words, tensor).values
    assert found.tolist() == plain_syndromes(data, blocks_of(tensor).tolist(), found.shape[1])


@pytest.mark.parametrize("size", [999, 4096, 9001])
@pytest.mark.parametrize(("run", "at_once"), [(64, 1), (100, 1000), (4096, 1 << 19)])
def test_blocks_of_unequal_lengths(monkeypatch, size, run, at_once):
    """Small blocks and runs, so that plain Python can follow."""
    for name, value in {"_BLOCK_BYTES": 500, "_RUN": run, "_AT_ONCE": at_once}.items():
        monkeypatch.setattr(sys.modules["aftershock.detect.syndromes"], name, value)
    data = bytes(at * 131 % 256 for at in range(size))
    words, tensor = words_of(torch.tensor(list(data), dtype=torch.uint8))
    bounds = blocks_of(tensor).tolist()
    lengths = {end - begin for begin, end in pairwise(bounds)}
    assert (bounds[0], bounds[-1], len(bounds) - 1) == (0, -(-size // 2), size // 500)
    assert max(lengths) - min(lengths) <= 1
    assert syndromes(words, tensor).values.tolist() == plain_syndromes(data, bounds, 2 * correctable(tensor))


def test_the_largest_words_of_the_longest_block_are_exact():
    """Every word 65535 over 196,607 places: sums come as near to the limit of float64 as they can."""
    words, tensor = words_of(torch.full((2 * 196_607,), 255, dtype=torch.uint8))
    places = torch.arange(1, 196_608)
    power, expected = torch.ones_like(places), []
    for _ in range(64):
        expected.append(65535 * int(power.sum()) % PRIME)
        power = power * places % PRIME
    assert blocks_of(tensor).tolist() == [0, 196_607]
    assert syndromes(words, tensor).values.tolist() == [expected]


def test_a_tensor_that_begins_at_an_odd_byte():
    whole = torch.arange(100, dtype=torch.uint8)
    words, tensor = words_of(whole[1:51])
    module_words = type(words)(torch.nn.Module(), words.tensors)
    module_words.module.register_buffer("tensor", whole[1:51])
    assert torch.equal(syndromes(module_words, tensor).values, syndromes(words, tensor).values)


def test_how_much_is_kept():
    sizes = [0, 1, 31, 64, 1000, 1023, 1024, 393_215, 393_216, 10**8]
    kept = []
    for size in sizes:
        tensor = TensorWords("x", "bytes", (size,), size, 1, max(size, 1), 1)
        kept.append((correctable(tensor), len(blocks_of(tensor)) - 1))
    assert kept == [(1, 1), (1, 1), (1, 1), (2, 1), (31, 1), (31, 1), (32, 1), (32, 1), (32, 2), (32, 508)]


def test_one_change_shows_its_place_and_size():
    changed = TENSORS["fp32"].clone()
    flip(changed, 2 * 30, 4)  # 16-bit word 30
    (words, tensor), (clean_words, _) = words_of(changed), words_of(TENSORS["fp32"])
    delta = (syndromes(words, tensor).values - syndromes(clean_words, tensor).values)[0] % PRIME
    assert int(delta[0]) in (16, PRIME - 16)
    assert all(int(delta[k + 1]) == int(delta[k]) * 31 % PRIME for k in range(len(delta) - 1))
