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
    Drawn,
    Entry,
    Fault,
    Flip,
    HeadValueSite,
    Replace,
    Scatter,
    ScatteredOutput,
    ScatteredWeights,
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
chances = st.floats(0, 1, exclude_min=True, exclude_max=True)
scatters = st.builds(Scatter, chances | st.integers(1, 10**9), st.integers(0, 2**63 - 1))
sites = (
    st.builds(WeightSite, names, st.lists(positions, min_size=1, max_size=4).map(tuple))
    | st.builds(ActivationSite, names, positions)
    | st.builds(CachedSite, st.sampled_from(["key", "value"]), names, positions, positions, entries)
    | st.builds(HeadValueSite, st.sampled_from(["score", "probability"]), names, positions, tokens)
    | st.builds(HeadValueSite, st.just("head_output"), names, positions, positions)
    | st.builds(ScatteredWeights, names, st.none() | names, scatters)
    | st.builds(ScatteredOutput, names, st.none() | names, scatters)
)
corruptions = (
    st.builds(Flip, bits)
    | st.builds(StuckAt, bits, st.sampled_from([0, 1]))
    | st.builds(Replace, numbers)
    | st.builds(Add, numbers)
    | st.builds(Drawn, st.sampled_from(["replace", "add"]), st.floats(-1e9, 0), st.floats(1e-9, 1e9))
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


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("scattered weight w rate 1e-3 key 7 flip 0-15", "scattered weight w rate 0.001 key 7 flip 0-15 always"),
        ("scattered weight w of q count 5 key 7 flip 4,3,1", "scattered weight w of q count 5 key 7 flip 1,3,4 always"),
        (
            "scattered activation m rate 0.5 key 0 replace uniform[0,1] during decode",
            "scattered activation m rate 0.5 key 0 replace uniform[0.0,1.0] from decode:1",
        ),
        ("weight w[3] flip 0,1,2,5,7-9", "weight w[3] flip 0-2,5,7-9 always"),
    ],
)
def test_scattered_sets_and_runs_of_bits_read_and_print(line: str, printed: str) -> None:
    assert str(parse_fault(line)) == printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scattered weight w rate 0 key 7 flip 1", "rate 0.0 is no chance"),
        ("scattered weight w rate 1.0 key 7 flip 1", "rate 1.0 is no chance"),
        ("scattered weight w rate much key 7 flip 1", "rate much is no number"),
        ("scattered weight w count 0.5 key 7 flip 1", "count 0.5 is no number"),
        ("scattered weight w count 0 key 7 flip 1", "count 0 strikes nothing"),
        ("scattered weight w rate 0.1 flip 1", "can't be read"),
        ("scattered weight w[3] rate 0.1 key 7 flip 1", "can't be read"),
        ("scattered weight w rate 0.1 key 9223372036854775808 flip 1", "key 9223372036854775808 can't be used"),
        ("scattered weight w rate 0.1 key 7 replace uniform[1,1]", "holds no numbers"),
        ("scattered weight w rate 0.1 key 7 add uniform[0,inf]", "holds no numbers"),
        ("scattered weight w rate 0.1 key 7 flip 5-3", "can't be struck"),
    ],
)
def test_what_is_no_scattered_set_is_refused(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_fault(line)


@pytest.mark.parametrize(
    "line", ["weight a[0] flip 0-99999999999 always", f"weight a[{'9' * 5000}] flip 1 always"], ids=["bits", "index"]
)
def test_lines_without_measure_are_refused_at_once(line):
    with pytest.raises(InputError, match=r"bit positions|can't be read"):
        parse_fault(line)
