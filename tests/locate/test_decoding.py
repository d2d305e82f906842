"""Changed words from syndromes."""

import pytest
import torch
from flipped import DTYPES, as_read, equal, flip, flip_randomly, integers, one_tensor, reader
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.detect import PRIME, Syndromes, blocks_of, correctable, syndromes
from aftershock.locate import Ambiguous, Restored, WordChanges, decode
from aftershock.locate.decoding import solve
from aftershock.numerics import generator

SHAPES = [(1,), (3,), (7, 5), (33, 31), (200, 180)]


def decoded(words, corrupt):
    """What decoding finds after `corrupt` was done to the words; a list of changes that is wrong fails here."""
    (tensor,) = words.tensors
    clean, before = as_read(words), syndromes(words, tensor)
    corrupt(words)
    found = decode(syndromes(words, tensor), before, tensor, reader(words, tensor))
    if isinstance(found, WordChanges):
        assert equal(as_read(Restored(words, {"weight": found})), clean)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_random_flips_as_promised_are_found(dtype, shape):
    words = one_tensor(shape, dtype)
    (tensor,) = words.tensors
    for seed in range(4):
        words = one_tensor(shape, dtype, seed)
        count = min(correctable(tensor), tensor.filled)
        found = decoded(words, lambda words, seed=seed, count=count: flip_randomly(words, count, seed))
        assert len(found) == count
        assert all(len(bits) == 1 for bits in found.bits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_burst_of_64_bytes_is_found(dtype):
    words = one_tensor((200, 180), dtype)

    def burst(words):
        flat = integers(words).view(-1)
        count = 64 // dtype.itemsize
        flat[1000 // dtype.itemsize * 4 :][:count] ^= -1

    assert len(decoded(words, burst)) == 64 // dtype.itemsize


def test_an_odd_last_byte_is_found():
    words = one_tensor((35,), torch.int8)
    flat = integers(words).view(-1)
    before = int(flat[-1])

    def last(words):
        flat[-1] ^= 1 << 4

    found = decoded(words, last)
    (tensor,) = words.tensors
    assert (found.rows * tensor.columns + found.columns).tolist() == [34]
    assert found.clean.tolist() == [before & 255]


def test_what_fills_up_the_last_word_cannot_have_changed():
    """The highest bits of the last 16-bit word are none of the tensor's."""
    words = one_tensor((35,), torch.int8)
    (tensor,) = words.tensors
    integers(words).view(-1)[-1] = 7
    now = syndromes(words, tensor)
    last = torch.tensor([pow(18, k, PRIME) for k in range(2 * correctable(tensor))])
    own, beyond = (Syndromes((now.values + more * last) % PRIME) for more in (1, 256))
    found = decode(now, own, tensor, reader(words, tensor))
    assert (found.rows.tolist(), found.columns.tolist(), found.clean.tolist()) == ([5], [4], [8])
    found = decode(now, beyond, tensor, reader(words, tensor))
    assert isinstance(found, Ambiguous)
    assert found.rows == (5,)


@pytest.mark.parametrize(("held", "more"), [(7, -8), (-1, 1)])
def test_a_word_that_would_leave_its_range_cannot_have_changed(held, more):
    words = one_tensor((66, 66), torch.bfloat16)
    (tensor,) = words.tensors
    integers(words)[3, 4] = held
    now = syndromes(words, tensor)
    powers = torch.tensor([pow(3 * 66 + 4 + 1, k, PRIME) for k in range(2 * correctable(tensor))])
    found = decode(now, Syndromes((now.values + more * powers) % PRIME), tensor, reader(words, tensor))
    assert isinstance(found, Ambiguous)
    assert found.rows == (3,)


def test_rows_that_are_named_are_the_tensors_own():
    words = one_tensor((9,), torch.int8)
    found = decoded(words, lambda words: flip_randomly(words, 9, 0))
    assert isinstance(found, Ambiguous)
    assert found.rows == (0, 1, 2)


def test_both_halves_of_a_32_bit_word_are_one_change():
    words = one_tensor((70, 70), torch.float32)

    def both(words):
        flip(words, [(3, 4)], 3)
        flip(words, [(3, 4)], 31)

    found = decoded(words, both)
    assert found.bits == ((3, 31),)


def test_blocks_are_decoded_apart_and_too_many_changes_name_the_block():
    words = one_tensor((700, 512), torch.bfloat16)
    (tensor,) = words.tensors
    borders = blocks_of(tensor).tolist()
    assert len(borders) == 4

    def spread(words, counts):
        flat = integers(words).view(-1)
        for first, count in zip(borders, counts, strict=False):
            flat[first : first + count] ^= 1

    assert len(decoded(words, lambda words: spread(words, (32, 1, 32)))) == 65
    found = decoded(one_tensor((700, 512), torch.bfloat16), lambda words: spread(words, (2, 33, 32)))
    assert isinstance(found, Ambiguous)
    assert found.rows == tuple(range(borders[1] // 512, -(-borders[2] // 512)))
    assert "more words of a block" in found.why


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_decoding_any_sparse_errors(data):
    length = data.draw(st.integers(1, 3000))
    t = data.draw(st.integers(1, 32))
    places = data.draw(st.lists(st.integers(0, length - 1), max_size=min(t, length), unique=True))
    errors = {place: data.draw(st.integers(-65535, 65535).filter(bool)) for place in places}
    found = solve(sums_of(errors, 2 * t), length)
    if not errors:
        assert found is None
    else:
        assert dict(zip(found.places.tolist(), found.deltas.tolist(), strict=True)) == errors


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_syndromes_of_nothing_are_refused(data):
    """Random numbers are no code word's: the chance of an answer is below 2^-27 t."""
    t = data.draw(st.integers(1, 32))
    draws = generator(data.draw(st.integers(0, 2**32)), 0, "syndromes")
    assert solve([int(value) for value in draws.integers(0, PRIME, 2 * t)], 2000) is None


def sums_of(errors, count):
    """Syndromes 0 .. count - 1 of changes by place."""
    return [sum(delta * pow(place + 1, k, PRIME) for place, delta in errors.items()) % PRIME for k in range(count)]


@pytest.mark.parametrize("delta", [65_535, -65_535, 65_536, -65_536, 1 << 30])
def test_no_word_changes_by_more_than_16_bits(delta):
    found = solve(sums_of({30: delta, 7: 1}, 8), 100)
    if abs(delta) < 1 << 16:
        assert (found.places.tolist(), found.deltas.tolist()) == ([7, 30], [1, delta])
    else:
        assert found is None


def test_a_recurrence_that_no_words_make_is_refused():
    """The first sum alone is another: as if a word at no place, whose powers are 1, 0, 0, ..., had changed."""
    first, *others = sums_of({9: 4}, 8)
    assert solve([first + 1, *others], 100) is None


def test_more_words_than_can_be_told_apart_are_refused():
    """Three words that the recurrence of four sums happens to tell; others would make the same four."""
    errors = {60_203: 19_945, 58_358: -19_576, 79_041: -123}
    assert solve(sums_of(errors, 4), 100_000) is None
    assert solve(sums_of(errors, 6), 100_000).places.tolist() == sorted(errors)


def test_more_changes_than_promised_are_refused():
    for seed in range(5):
        found = decoded(one_tensor((200, 180), torch.bfloat16), lambda words, seed=seed: flip_randomly(words, 33, seed))
        assert isinstance(found, Ambiguous)
