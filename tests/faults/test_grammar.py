"""The one-line grammar: everything that can be printed parses back equal, everything else is refused."""

import math
import pickle
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.faults import (
    ALWAYS,
    ActivationSite,
    Add,
    CachedSite,
    Entry,
    Fault,
    Flip,
    HeadValueSite,
    Replace,
    StuckAt,
    Trigger,
    WeightSite,
    format_faults,
    parse_fault,
    parse_faults,
    parse_trigger,
    read_faults,
)
from aftershock.models import FIRST_TOKEN, PREFILL, decode

names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=40)
positions = st.integers(0, 2**40)
bits = st.sets(st.integers(0, 31), min_size=1, max_size=32).map(sorted).map(tuple)
numbers = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e300])
tokens = st.integers(0, 10**9) | st.floats(0, 1, exclude_max=True).map(abs)
entries = st.builds(Entry, st.integers(1, 10_000)) | st.builds(Entry, st.just(PREFILL), tokens)
sites = (
    st.builds(WeightSite, names, st.lists(positions, min_size=1, max_size=4).map(tuple))
    | st.builds(ActivationSite, names, positions)
    | st.builds(CachedSite, st.sampled_from(["key", "value"]), names, positions, positions, entries)
    | st.builds(HeadValueSite, st.sampled_from(["score", "probability"]), names, positions, tokens)
    | st.builds(HeadValueSite, st.just("head_output"), names, positions, positions)
)
corruptions = (
    st.builds(Flip, bits)
    | st.builds(StuckAt, bits, st.sampled_from([0, 1]))
    | st.builds(Replace, numbers)
    | st.builds(Add, numbers)
)
passes = st.integers(0, 10_000)
triggers = (
    st.builds(Trigger, passes)
    | st.builds(lambda first, length: Trigger(first, first + length), passes, st.integers(1, 5_000))
    | st.builds(lambda token: Trigger(PREFILL, FIRST_TOKEN, token), tokens)
)
faults = st.builds(Fault, sites, corruptions, triggers)
fault_sets = st.lists(faults, min_size=1, max_size=4).map(tuple)


@given(faults)
def test_a_pickled_fault_is_equal(fault: Fault) -> None:
    again = pickle.loads(pickle.dumps(fault))
    assert again == fault
    assert str(again) == str(fault)


@settings(max_examples=150)
@given(faults)
def test_a_fault_prints_as_one_line_and_parses_back_equal(fault: Fault) -> None:
    line = str(fault)
    assert len(line.splitlines()) == 1
    assert parse_fault(line) == fault
    # Equality takes 0.0 for -0.0 and 0 for 0.0; the printed line does not.
    assert str(parse_fault(line)) == line


@given(fault_sets)
def test_a_fault_set_parses_back_equal(faults: tuple[Fault, ...]) -> None:
    assert parse_faults(format_faults(faults)) == faults


@given(faults, st.sampled_from(["  ", "\t", " \t "]))
def test_white_space_between_the_parts_does_not_matter(fault: Fault, gap: str) -> None:
    assert parse_fault(gap + str(fault).replace(" ", gap) + gap) == fault


@pytest.mark.parametrize(
    ("text", "trigger"),
    [
        ("always", ALWAYS),
        ("from prefill", ALWAYS),
        ("during prefill", Trigger(PREFILL, FIRST_TOKEN)),
        ("at prefill", Trigger(PREFILL, FIRST_TOKEN)),
        ("at prefill:3", Trigger(PREFILL, FIRST_TOKEN, 3)),
        ("at prefill:.25", Trigger(PREFILL, FIRST_TOKEN, 0.25)),
        ("during first_token", Trigger(FIRST_TOKEN, decode(1))),
        ("at first_token", Trigger(FIRST_TOKEN, decode(1))),
        ("during decode", Trigger(decode(1))),
        ("from decode:1", Trigger(decode(1))),
        ("at decode:7", Trigger(decode(7), decode(8))),
        ("from first_token to decode:2", Trigger(FIRST_TOKEN, decode(2))),
        ("from prefill to decode:2", Trigger(PREFILL, decode(2))),
    ],
)
def test_triggers_and_their_other_names(text: str, trigger: Trigger) -> None:
    assert parse_trigger(text) == trigger
    assert parse_trigger(str(trigger)) == trigger


def test_a_fault_without_a_trigger_is_always_there() -> None:
    assert parse_fault("weight a.weight[1,2] flip 3").trigger == ALWAYS


def test_bits_are_put_in_order() -> None:
    assert parse_fault("weight a[0] flip 14,3").corruption == Flip((3, 14))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "weight a flip 3",
        "weight a[] flip 3",
        "weight a[1,] flip 3",
        "weight a[-1] flip 3",
        "weight a[1.0] flip 3",
        "weight [1] flip 3",
        "weight a b[1] flip 3",
        "cache a[1] flip 3",
        "activation a[1,2] flip 3 at first_token",
        "activation a[1] of first_token flip 3 at first_token",
        "weight a[1] of first_token flip 3",
        "key a[1,2] flip 3",
        "key a[1] of first_token flip 3",
        "key a[1,2,3] of first_token flip 3",
        "value a[1,2] of prefill flip 3",
        "value a[1,2] of prefill:1.5 flip 3",
        "value a[1,2] of decode:0 flip 3",
        "value a[1,2] of nowhere flip 3",
        "score a[1] flip 3 at first_token",
        "score a[0.5] flip 3 at first_token",
        "score a[1,2,0.5] flip 3 at first_token",
        "score a[1,1.5] flip 3 at first_token",
        "probability a[1,2] of first_token flip 3 at first_token",
        "head_output a[1,0.5] flip 3 at first_token",
        "value a[1,0.5] of first_token flip 3",
        "weight a[1,0.5] flip 3",
        "weight a[1] twiddle 3",
        "weight a[1] flip",
        "weight a[1] flip x",
        "weight a[1] flip 3,,4",
        "weight a[1] flip 3,3",
        "weight a[1] flip -3",
        "weight a[1] stuck-at-2 3",
        "weight a[1] stuck-at-0 1.5",
        "weight a[1] replace three",
        "weight a[1] add 1,2",
        "weight a[1] flip 3 sometimes",
        "weight a[1] flip 3 at",
        "weight a[1] flip 3 at decode",
        "weight a[1] flip 3 at decode:0",
        "weight a[1] flip 3 at decode:-1",
        "weight a[1] flip 3 at prefill:1.0",
        "weight a[1] flip 3 at prefill:-1",
        "weight a[1] flip 3 at first_token:2",
        "weight a[1] flip 3 during decode:3",
        "weight a[1] flip 3 from decode:3 to decode:3",
        "weight a[1] flip 3 from decode:3 to prefill",
        "weight a[1] flip 3 from prefill:2",
        "weight a[1] flip 3 & weight b[1] flip 3",
    ],
)
def test_what_is_not_a_fault_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_fault(text)


@settings(max_examples=100)
@given(st.text(max_size=60) | st.text("weight activon flpsuck-0123456789[],.:&# ", max_size=60))
def test_any_text_parses_or_raises_input_error(text: str) -> None:
    try:
        found = parse_faults(text)
    except InputError:
        return
    assert parse_faults(format_faults(found)) == found


@settings(max_examples=25)
@given(st.lists(fault_sets, min_size=1, max_size=6), st.data())
def test_a_file_with_comments_and_blank_lines(
    tmp_path_factory: pytest.TempPathFactory, trials: list[tuple[Fault, ...]], data: st.DataObject
) -> None:
    lines = []
    for trial in trials:
        lines += data.draw(st.lists(st.sampled_from(["", "   ", "# a comment", "  # & another"]), max_size=2))
        lines.append(format_faults(trial) + data.draw(st.sampled_from(["", "  ", " # why", "# weight x[0] flip 1"])))
    path = tmp_path_factory.mktemp("faults") / "faults.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_faults(path) == tuple(trials)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faults.txt"
    path.write_text("# two good lines\nweight a[0] flip 1\n\nweight a[0] flip one\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"faults\.txt, line 4: .*flip takes bit positions"):
        read_faults(path)


def test_a_list_without_a_fault_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "faults.txt"
    path.write_text("# nothing yet\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no fault"):
        read_faults(path)


def test_a_missing_or_binary_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_faults(tmp_path / "absent.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read"):
        read_faults(tmp_path / "binary")
