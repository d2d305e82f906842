"""Faults as values: what a trigger covers, where it cuts a run, and what can't be built at all."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.faults import ALWAYS, Add, Flip, Replace, StuckAt, Trigger, pass_name
from aftershock.models import FIRST_TOKEN, PREFILL, decode


@given(st.integers(0, 20), st.none() | st.integers(1, 20), st.integers(0, 60))
def test_a_trigger_covers_its_half_open_interval(first: int, length: int | None, number: int) -> None:
    end = None if length is None else first + length
    expected = number >= first if end is None else number in range(first, end)
    assert Trigger(first, end).covers(number) == expected


def test_runs_are_cut_where_a_trigger_begins_and_ends() -> None:
    assert ALWAYS.boundaries == frozenset()
    assert Trigger(PREFILL, FIRST_TOKEN).boundaries == {FIRST_TOKEN}
    assert Trigger(FIRST_TOKEN, decode(1)).boundaries == {FIRST_TOKEN, decode(1)}
    assert Trigger(decode(3)).boundaries == {decode(3)}


def test_transient_is_one_pass() -> None:
    assert Trigger(decode(2), decode(3)).transient
    assert not Trigger(decode(2), decode(4)).transient
    assert not ALWAYS.transient


def test_passes_have_names() -> None:
    assert [pass_name(number) for number in range(4)] == ["prefill", "first_token", "decode:1", "decode:2"]


@pytest.mark.parametrize("bits", [(), (3, 3), (4, 3), (-1,), (-1, 2)])
def test_bits_are_given_once_each_and_ascending(bits: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="can't be struck"):
        Flip(bits)
    with pytest.raises(InputError, match="can't be struck"):
        StuckAt(bits, 1)


@pytest.mark.parametrize(("first", "end"), [(3, 3), (3, 2), (-1, None), (-2, 4)])
def test_an_interval_holds_a_pass(first: int, end: int | None) -> None:
    with pytest.raises(InputError, match="hold none"):
        Trigger(first, end)


@pytest.mark.parametrize("token", [-1, -0.5, 1.0, 7.5, math.nan])
def test_a_token_exists(token: float) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Trigger(PREFILL, FIRST_TOKEN, token)


@pytest.mark.parametrize(("first", "end"), [(PREFILL, None), (FIRST_TOKEN, decode(1)), (PREFILL, decode(1))])
def test_only_prefill_has_tokens_to_choose_from(first: int, end: int | None) -> None:
    with pytest.raises(InputError, match="outside prefill"):
        Trigger(first, end, 0.5)


def test_nan_equals_itself_in_a_fault() -> None:
    assert Replace(float("nan")) == Replace(float("nan"))
    assert Add(float("nan")) == Add(float("nan"))
    assert hash(Replace(float("nan"))) == hash(Replace(float("nan")))
    assert pickle.loads(pickle.dumps(Replace(math.nan))) == Replace(math.nan)
    assert pickle.loads(pickle.dumps(Add(math.nan))) == Add(math.nan)
