"""The quick checksum: three ways to take it, against plain Python, and what it sees."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_words import TENSORS, flip, module_of, raw, words_of

from aftershock.detect import checksum, checksums, multipliers
from aftershock.models import live_words

inner = sys.modules["aftershock.detect.checksum"]  # the room gives the function of the same name


@pytest.fixture
def small(monkeypatch):
    """Chunks of 2 rows x 4 lanes, so that plain Python can follow."""
    inner._weights.cache_clear()
    for name, value in {"ROWS": 2, "LANES": 4, "CHUNK": 64, "_SLICE": 128}.items():
        monkeypatch.setattr(inner, name, value)
    yield
    inner._weights.cache_clear()


def plain_checksum(data: bytes, seed: int, rows: int, lanes: int) -> tuple[int, int]:
    """As the page of the format says."""
    size = rows * lanes * 8
    data += b"\0" * (-len(data) % size)
    factors = [number % 2**64 for number in multipliers(max(1, len(data) // size) * 2 * lanes, seed).tolist()]
    first = second = 0
    for chunk in range(len(data) // size):
        for lane in range(lanes):
            places = (chunk * size + (row * lanes + lane) * 8 for row in range(rows))
            total = sum(int.from_bytes(data[at : at + 8], "little") for at in places) % 2**64
            swapped = (total % 2**32 << 32) + (total >> 32)
            first += total * factors[2 * chunk * lanes + lane]
            second += swapped * factors[(2 * chunk + 1) * lanes + lane]
    return first % 2**64, second % 2**64


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [0, 1, 7, 8, 31, 32, 33, 64, 65, 127, 128, 129, 200, 1003])
@pytest.mark.parametrize("seed", [0, 2**64 - 5])
def test_all_ways_are_the_plain_one(size, seed):
    data = bytes(at * 151 % 256 for at in range(size))
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    plain = plain_checksum(data, seed, 2, 4)
    words, one = words_of(tensor)
    by_torch = inner.sums_by_torch(tensor, inner.weights(size, seed))
    assert checksums([tensor], seed) == [plain]
    assert checksum(words, one, seed) == plain
    assert tuple(number % 2**64 for number in by_torch.tolist()) == plain


def test_full_chunks_are_the_plain_ones():
    data = np.arange(inner.CHUNK + 9_001, dtype=np.uint32).astype(np.uint8)
    tensor = torch.from_numpy(data)
    plain = plain_checksum(data.tobytes(), 3, 128, 1024)
    by_torch = inner.sums_by_torch(tensor, inner.weights(len(tensor), 3))
    assert checksums([tensor], 3) == [plain]
    assert tuple(number % 2**64 for number in by_torch.tolist()) == plain


@pytest.mark.usefixtures("small")
@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 4))
def test_many_tensors_at_once(contents, threads):
    tensors = [torch.tensor(list(data), dtype=torch.uint8) for data in contents]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert checksums(tensors) == [plain_checksum(data, 0, 2, 4) for data in contents]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name, tensor in TENSORS.items() if 0 < tensor.numel() < 20])
def test_every_flip_is_seen(name):
    tensor = TENSORS[name].clone()
    clean = checksums([tensor])[0]
    for byte in range(tensor.nbytes):
        for bit in range(8):
            flip(tensor, byte, bit)
            now = checksums([tensor])[0]
            assert now[0] != clean[0]
            assert now[1] != clean[1]
            flip(tensor, byte, bit)
    assert checksums([tensor])[0] == clean


def test_pairs_of_the_uppermost_bits_are_seen():
    """Sum 0 alone would miss them: an odd number times 2^63 is 2^63."""
    tensor = torch.zeros(8 * 64, dtype=torch.uint8)
    clean = checksums([tensor])[0]
    for other in range(8, 64):
        changed = tensor.clone()
        flip(changed, 7, 7)
        flip(changed, 8 * other + 7, 7)
        now = checksums([changed])[0]
        assert now[0] == clean[0]
        assert now[1] != clean[1]


def test_what_it_can_not_see():
    """Opposite changes in one lane, as the page says; a digest sees them."""
    tensor = torch.zeros(3 * 8192, dtype=torch.uint8)
    flip(tensor, 8192 + 40, 3)
    changed = tensor.clone()
    flip(changed, 40, 3)
    flip(changed, 8192 + 40, 3)
    assert raw(changed) != raw(tensor)
    assert checksums([changed]) == checksums([tensor])


def test_views_that_are_not_in_order():
    tensor = torch.arange(48, dtype=torch.int16).view(6, 8)
    assert checksums([tensor.T, tensor[:, 1:3]]) == checksums([tensor.T.contiguous(), tensor[:, 1:3].contiguous()])


def test_bytes_at_an_odd_place():
    tensor = torch.arange(100, dtype=torch.uint8)
    assert checksums([tensor[3:80]]) == checksums([tensor[3:80].clone()])


def test_a_live_module_and_its_words_agree():
    words = live_words(module_of(**TENSORS))
    tensors = [words.tensor(tensor.name) for tensor in words.tensors]
    assert checksums(tensors, 7) == [checksum(words, tensor, 7) for tensor in words.tensors]
