from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import Letters

from aftershock.errors import InputError
from aftershock.tasks import (
    OUTCOMES,
    Answer,
    Item,
    RowResult,
    classify,
    distortion,
    is_sdc,
    judge,
    score_change,
)

LETTERS = Letters()
CHOICE = Item("m", "choice", "g", ("q",) * 3, ("a", "b", "c"), 1)
FREE = Item("t", "generation", "g", ("Once upon a time there lived",), max_new_tokens=80)
QUESTION = replace(FREE, answer="blue", match="contains")
TEXT = Item("t", "lm", "lm", ("",), ("text",))


def chosen(index: int) -> Answer:
    return Answer(str(index), index == 1, 0.0, (), True)


def written(item: Item, text: str) -> Answer:
    return judge(item, (RowResult(tuple(map(ord, text)), (), True),), LETTERS)


def loss(value: float) -> Answer:
    return Answer(repr(value), None, -value, (), True)


@pytest.mark.parametrize(
    ("golden", "faulty", "outcome"),
    [
        (1, 1, "masked"),
        (1, 0, "subtle"),
        (0, 1, "benign"),
        (0, 0, "masked"),
        (0, 2, "subtle"),
    ],
)
def test_choice(golden, faulty, outcome):
    assert classify(CHOICE, chosen(golden), chosen(faulty)) == outcome


@pytest.mark.parametrize(
    ("rise", "outcome"),
    [
        (0.0, "masked"),
        (0.0099, "masked"),
        (-0.0099, "masked"),
        (-0.02, "benign"),
        (0.02, "subtle"),
        (0.99, "subtle"),
        (1.01, "distorted"),
        (inf, "distorted"),
    ],
)
def test_loss(rise, outcome):
    assert classify(TEXT, loss(3.0), loss(3.0 + rise)) == outcome


def test_not_finite_comes_before_all_else():
    assert classify(CHOICE, chosen(1), replace(chosen(1), finite=False)) == "non_finite"


def test_golden_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="overflows in this dtype"):
        classify(CHOICE, replace(chosen(1), finite=False), chosen(1))


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("It is blue.", "masked"),
        ("Blue, I think.", "benign"),
        ("It is green.", "subtle"),
        ("It is is is is is is is is", "distorted"),
        ("", "distorted"),
    ],
)
def test_text_with_a_reference(text, outcome):
    assert classify(QUESTION, written(QUESTION, "It is blue."), written(QUESTION, text)) == outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("a wise old man named Tom", "masked"),
        ("a wise old man called Tom", "benign"),
        ("two dragons who loved chess", "subtle"),
        ("a wise a wise a wise a wise old man named Tom", "distorted"),
    ],
)
def test_text_without_a_reference(text, outcome):
    golden = written(FREE, "a wise old man named Tom")
    assert classify(FREE, golden, written(FREE, text)) == outcome


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("... !", "empty"),
        ("x " * 40, "runaway"),
        ("the cat sat. The cat sat. the cat sat.", "repetition"),
        ("no no no no no no", "repetition"),
        ("aaaaaaaaaaaaaaaaaa", "repetition"),
        ("你好吗我很好你好吗我很好你好吗我很好", "repetition"),
        ("so it\ufffd is", "broken characters"),
        ("so \x00 it", "broken characters"),
        ("the дом is", "foreign script"),
        ("a }{)(*&^%$ b", "symbols"),
        ("the umablyXforeKnown zzQuet alOld", "mangled words"),
        ("donaubcdefghijklmnopqrstuvwxyzäöüß", "mangled words"),
        ("a wise old man", None),
        ("The answer is 1000000.", None),
        ("It costs 10,000,000,000 in all", None),
        ("ha ha ha", None),
        ("the angle \u03c0 is", None),
        ("x^2 + 1 = 5", None),
        ("JavaScript is a language", None),
        ("cut short \ufffd", None),
        ("El niño está aquí", None),
    ],
)
def test_distortion_rules(text, rule):
    assert distortion(FREE, written(FREE, "a wise man"), written(FREE, text)) == rule


@pytest.mark.parametrize(
    "golden", ["no no no no no no no", "\ufffd\ufffd a", "дом кот", "}{)(*&^", "aBcD eFgH iJkL", "", "x " * 40]
)
def test_what_golden_does_is_no_distortion(golden):
    answer = written(FREE, golden)
    other = replace(answer, output=f"{answer.output} {golden}")
    assert distortion(FREE, answer, other) is None


@given(st.text(max_size=80), st.booleans())
def test_golden_against_itself_is_masked_and_undistorted(text, with_reference):
    item = QUESTION if with_reference else FREE
    answer = written(item, text)
    assert classify(item, answer, answer) == "masked"
    assert distortion(item, answer, answer) is None
    assert score_change(item, answer, answer) == 0.0


@given(st.text(max_size=40), st.text(max_size=40), st.booleans())
def test_every_pair_of_texts_has_one_outcome(golden, faulty, with_reference):
    item = QUESTION if with_reference else FREE
    ours, theirs = written(item, faulty), written(item, golden)
    outcome = classify(item, theirs, ours)
    assert outcome in OUTCOMES
    assert (outcome == "masked") == (ours.output == theirs.output)
    if ours.right and outcome != "masked":
        assert outcome == "benign"
    assert is_sdc(outcome) == (outcome in ("subtle", "distorted"))


def test_score_change_without_reference_compares_with_golden():
    golden = written(FREE, "a wise old man")
    assert score_change(FREE, golden, written(FREE, "two young cats")) == -1.0
    assert score_change(CHOICE, replace(chosen(1), score=2.0), replace(chosen(0), score=-1.0)) == -3.0
