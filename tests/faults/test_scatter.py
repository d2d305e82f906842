"""Scattered sets: their distribution, what they depend on, and what they cost."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from aftershock.errors import InputError
from aftershock.faults import Fault, TokenScatter, parse_fault, scattered_weights
from aftershock.models import HeadSite, OutputSite, ParameterSite, Rows

LEAST_P = 1e-3
ROWS, COLUMNS = 1500, 1000
"""More values than one block has."""
MATRIX = ParameterSite("w", "up", 0, (ROWS, COLUMNS), (ROWS, COLUMNS), 0, Rows(0, ROWS, ROWS))
CHANNELS = 12
OUTPUT = OutputSite("m", "o", 0, CHANNELS, CHANNELS, Rows(0, CHANNELS, CHANNELS), "btc")


def weights(rest: str, part: ParameterSite = MATRIX):
    return scattered_weights(parse_fault(f"scattered weight w {rest}"), part)


def outputs(rest: str) -> TokenScatter:
    return TokenScatter(output_fault(rest), OUTPUT)


def output_fault(rest: str) -> Fault:
    return parse_fault(f"scattered activation m {rest}")


def same(one, other) -> bool:
    pairs = zip((one.values, one.masks, one.numbers), (other.values, other.masks, other.numbers), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_a_rate_is_the_chance_of_each_bit() -> None:
    bits, rate = 3, 2e-3
    found = [weights(f"rate {rate} key {key} flip 1,5,20") for key in range(40)]
    masks = np.concatenate([one.masks for one in found])
    each = np.array([(masks >> bit & 1).sum() for bit in (1, 5, 20)])
    assert not (masks & ~np.uint32(1 << 1 | 1 << 5 | 1 << 20)).any()
    assert chisquare(each).pvalue > LEAST_P
    counts = np.array([sum(int((one.masks >> bit & 1).sum()) for bit in (1, 5, 20)) for one in found])
    mean, variance = MATRIX.numel * bits * rate, MATRIX.numel * bits * rate * (1 - rate)
    assert abs(counts.mean() - mean) < 4 * np.sqrt(variance / len(counts))
    assert abs(counts.var() - variance) < 4 * variance * np.sqrt(2 / len(counts))
    # Every part of the tensor alike, its last block too.
    parts = np.histogram(np.concatenate([one.values for one in found]), bins=30, range=(0, MATRIX.numel))[0]
    assert chisquare(parts).pvalue > LEAST_P


def test_bits_of_one_word_are_independent_and_make_one_strike() -> None:
    found = weights("rate 0.3 key 1 flip 0-1")
    assert (np.diff(found.values) > 0).all()
    struck = np.bincount(found.masks, minlength=4)[1:]
    expected = MATRIX.numel * np.array([0.3 * 0.7, 0.7 * 0.3, 0.3 * 0.3])
    assert (
        chisquare(np.append(struck, MATRIX.numel - struck.sum()), np.append(expected, MATRIX.numel * 0.49)).pvalue
        > 0.001
    )


def test_a_rate_for_whole_values_draws_a_number_for_each() -> None:
    found = weights("rate 0.01 key 1 replace uniform[-1.0,3.0]")
    assert len(found.numbers) == len(found.values) > 10_000
    assert not found.masks.any()
    assert kstest(found.numbers, "uniform", (-1, 4)).pvalue > LEAST_P
    assert not len(weights("rate 0.01 key 1 add 2.0").numbers)


@pytest.mark.parametrize("count", [1, 7, 3_000_000, 4_499_999])
def test_a_count_is_exact(count: int) -> None:
    found = weights(f"count {count} key 1 flip 1,5,20")
    assert sum(int((found.masks >> bit & 1).sum()) for bit in (1, 5, 20)) == count
    assert (np.diff(found.values) > 0).all()
    assert 0 <= found.values[0] <= found.values[-1] < MATRIX.numel


@settings(max_examples=30)
@given(st.integers(0, 2**63 - 1), st.sampled_from(["rate 0.001", "count 40"]), st.sampled_from(["flip 3-9", "add 1.0"]))
def test_a_set_is_a_function_of_key_and_name(key: int, amount: str, corruption: str) -> None:
    part = ParameterSite("w", "up", 0, (100, 100), (100, 100), 0, Rows(0, 100, 100))
    found = weights(f"{amount} key {key} {corruption}", part)
    assert same(found, weights(f"{amount} key {key} {corruption} from decode:3", part))
    assert not same(found, weights(f"{amount} key {(key + 1) % 2**63} {corruption}", part))
    other = ParameterSite("v", "up", 0, (100, 100), (100, 100), 0, Rows(0, 100, 100))
    assert not same(found, weights(f"{amount} key {key} {corruption}", other))


def test_a_share_is_struck_in_its_own_rows() -> None:
    part = ParameterSite("w", "k", 0, (100, 10), (300, 10), 0, Rows(10, 10, 30))
    rows = weights("rate 0.1 key 1 flip 0", part).values // 10
    assert part.rows.contains(rows).all()
    assert len(set(rows)) > 50


def test_memory_goes_with_the_words_struck() -> None:
    rows = 2**17
    part = ParameterSite("w", "up", 0, (rows, 1024), (rows, 1024), 0, Rows(0, rows, rows))
    for rest in ("rate 1e-6 key 1 flip 0-31", "count 4000 key 1 flip 0-31"):
        tracemalloc.start()
        try:
            found = weights(rest, part)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # 2^27 words of 32 bits.
        assert 3500 < len(found.values) < 4800
        assert peak < 200 * len(found.values)


@settings(max_examples=60)
@given(st.data(), st.integers(0, 2**63 - 1), st.integers(0, 90))
def test_tokens_are_struck_alike_in_whatever_parts_they_come(data: st.DataObject, key: int, prefill: int) -> None:
    amount = data.draw(st.sampled_from(["rate 0.02", f"count {min(5, prefill) or 5}"]))
    corruption = data.draw(st.sampled_from(["flip 30", "flip 0-31", "add uniform[0.0,9.0]"]))
    scattered = outputs(f"{amount} key {key} {corruption}")
    whole = scattered.at(range(200), prefill)
    ends = sorted({0, 200, *data.draw(st.lists(st.integers(1, 199), max_size=6))})
    for start, stop in pairwise(ends):
        tokens = range(start, stop)
        part = outputs(f"{amount} key {key} {corruption}").at(tokens, prefill)
        assert same(part, whole.part(start * CHANNELS, stop * CHANNELS))
        assert same(part, scattered.at(tokens, prefill))


def test_under_a_rate_each_place_of_an_output_is_as_likely() -> None:
    found = np.concatenate([outputs(f"rate 0.05 key {key} flip 30").at(range(130), 40).values for key in range(60)])
    assert chisquare(np.bincount(found // CHANNELS, minlength=130)).pvalue > LEAST_P
    assert chisquare(np.bincount(found % CHANNELS, minlength=CHANNELS)).pvalue > LEAST_P
    # Where prefill ends is no matter.
    assert same(*(outputs("rate 0.05 key 4 flip 30").at(range(130), prefill) for prefill in (3, 100)))


def test_a_count_is_that_of_each_pass() -> None:
    tokens = outputs("count 3 key 4 add 1024.0").at(range(30), 20).values // CHANNELS
    counts = np.bincount(tokens, minlength=30)
    assert counts[:20].sum() == 3
    assert (counts[20:] == 3).all()
    places = [
        tuple(outputs("count 3 key 4 flip 1").at(range(at, at + 1), 20).values % CHANNELS) for at in range(20, 30)
    ]
    assert len(set(places)) > 1
    with pytest.raises(InputError, match="count 30 does not fit in the 24 places of a prompt"):
        outputs("count 30 key 4 flip 1 at prefill").at(range(2), 2)


# What heads make for tokens: of scores as many as the token sees.


@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize(("amount", "prefill"), [("rate 0.03", 150), ("count 3", 150), ("count 2", 0)])
def test_sums_of_scores_are_those_of_keys_that_a_token_sees(window: int | None, amount: str, prefill: int) -> None:
    heads = HeadSite("a", "qk_accumulator", 0, 3, 8, window)
    scattered = TokenScatter(output_fault(f"{amount} key 4 flip 30"), heads)
    places = {
        number: (token, own)
        for number, (token, own) in enumerate(
            (token, own) for token in range(200) for own in range(3 * len(heads.seen(token)))
        )
    }
    found = scattered.at(range(200), prefill).values
    tokens, own = scattered.tokens_of(found, 200)
    assert [places[number] for number in found.tolist()] == list(zip(tokens.tolist(), own.tolist(), strict=True))
    if amount.startswith("count"):
        counts = np.bincount(tokens, minlength=200)
        each = int(amount.split()[1])
        assert counts[prefill:].tolist() == [each] * (200 - prefill)
        assert counts[:prefill].sum() == (each if prefill else 0)
    else:
        assert abs(len(found) - 0.03 * len(places)) < 4 * np.sqrt(0.03 * len(places))
    # A part of a row has what the whole row has there.
    for part in (range(0, 64), range(60, 70), range(199, 200)):
        begin, end = np.searchsorted(tokens, (part.start, part.stop))
        assert np.array_equal(scattered.at(part, prefill).values, found[begin:end])
