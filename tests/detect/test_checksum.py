"""The quick checksum: three ways to take it, against plain Python, and what it sees."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_words import TENSORS, flip, module_of, raw, words_of

from aftershock.detect import checksum, checksums, multipliers
from aftershock.errors import InputError
from aftershock.models import live_words
from aftershock.numerics import generator

inner = sys.modules["aftershock.detect.checksum"]  # the room gives the function of the same name


@pytest.fixture
def small(monkeypatch):
    """Chunks of 2 rows x 4 lanes, so that plain Python can follow."""
    inner._weights.cache_clear()
    for name, value in {"ROWS": 2, "LANES": 4, "CHUNK": 64, "_SLICE": 128, "_GROUP": 3}.items():
        monkeypatch.setattr(inner, name, value)
    monkeypatch.setattr(sys.modules["aftershock.detect.chunk_table"], "CHUNK", 64)
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
def test_all_ways_are_the_plain_one(size, seed, monkeypatch):
    monkeypatch.setattr(sys.modules["aftershock.models.words"], "_PART", 128)  # two chunks in one go
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
    plain = plain_checksum(data.tobytes(), 3, 127, 1016)
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
    """Changes in one lane that add up to nothing, as the page says; a digest sees them."""
    tensor = torch.zeros(3 * 8128, dtype=torch.uint8)
    flip(tensor, 8128 + 40, 3)
    opposite = tensor.clone()
    flip(opposite, 40, 3)
    flip(opposite, 8128 + 40, 3)
    uppermost = tensor.clone()
    flip(uppermost, 47, 7)
    flip(uppermost, 8128 + 47, 7)
    assert raw(opposite) != raw(tensor) != raw(uppermost)
    assert checksums([opposite, uppermost]) == checksums([tensor, tensor])


CHUNK_WORDS = 127 * 1016


@pytest.mark.parametrize(
    ("words", "step"),
    [
        *((CHUNK_WORDS, step) for step in (1, 2, 8, 9, 16, 128, 144, 512, 768, 1016, 1024, 2048, 3584)),
        *((2**17, step) for step in (1, 8, 512, 1024)),  # matrices of 1 MiB
        *((2**13, step) for step in (1, 2, 8, 512, 1024)),  # of 64 KiB
        *((2**11, step) for step in (1, 8, 512, 1024)),  # of 16 KiB: two rows of 8 KiB, four of 4
    ],
)
def test_stuck_columns_and_data_lines_are_seen(words, step):
    """Every bit, set in every `step`-th word: with lanes of 128 words bit 63 would be there 128 times, which is 0."""
    tensors = torch.zeros(64, words, dtype=torch.int64)
    clean = checksums([tensors[0]])[0]
    for bit, tensor in enumerate(tensors):
        tensor[step // 2 :: step] = torch.tensor(1).bitwise_left_shift(bit)
    assert clean not in checksums(list(tensors))


def test_a_stuck_exponent_of_a_column_is_seen():
    weight = torch.from_numpy(0.02 * generator(0, 0, "test").standard_normal((256, 4096))).bfloat16()
    clean = checksums([weight])
    weight.view(torch.int16)[:, 3] |= 1 << 14
    assert checksums([weight]) != clean


def test_views_that_are_not_in_order():
    tensor = torch.arange(48, dtype=torch.int16).view(6, 8)
    assert checksums([tensor.T, tensor[:, 1:3]]) == checksums([tensor.T.contiguous(), tensor[:, 1:3].contiguous()])


@pytest.mark.parametrize(("begin", "end"), [(3, 80), (1, 30_000), (5, inner.CHUNK + 20_007)])
def test_bytes_at_an_odd_place(begin, end):
    tensor = torch.from_numpy(np.arange(end, dtype=np.uint32).astype(np.uint8))
    assert checksums([tensor[begin:]]) == checksums([tensor[begin:].clone()])


def test_what_is_summed_is_left_alone():
    parameter = torch.nn.Parameter(torch.arange(1200.0).view(40, 30))
    before = parameter.detach().clone()
    with torch.inference_mode():
        inside = checksums([parameter, torch.tensor(1.5)])
    assert checksums([before, torch.full((1,), 1.5)]) == inside
    assert torch.equal(parameter, before)


class Wrapped(torch.Tensor):
    """A tensor made of another, with no memory of its own, as quantised ones of some libraries are."""

    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        pytest.fail(f"{operation} asks for values that are not there")


def test_tensors_without_memory_are_refused():
    with pytest.raises(InputError, match="Wrapped has no memory of its own"):
        checksums([Wrapped(torch.ones(4, 4))])
    assert checksums([torch.ones(0, 4)]) == [(0, 0)]


def test_a_live_module_and_its_words_agree():
    words = live_words(module_of(**TENSORS))
    tensors = [words.tensor(tensor.name) for tensor in words.tensors]
    assert checksums(tensors, 7) == [checksum(words, tensor, 7) for tensor in words.tensors]
