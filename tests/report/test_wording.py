import math
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from aftershock.report.wording import interval, number, percent, points, rate, split_at_difference, visible

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_percentages_keep_three_digits_and_small_ones_do_not_become_zero():
    assert plain(percent(0.0)) == "0 %"
    assert plain(percent(0.031234)) == "3.12 %"
    assert plain(percent(0.5)) == "50.0 %"
    assert plain(percent(0.00004567)) == "0.0046 %"


def test_a_rate_carries_its_interval():
    assert plain(rate(0.0312, 0.019, 0.051)) == "3.12 % [1.90, 5.10]"
    assert interval(0, 0.0095) == "[0, 0.95]"


def test_differences_are_signed():
    assert plain(points(0.024)) == "+2.40 points"
    assert plain(points(-0.001)) == "-0.10 points"


def test_numbers_that_are_none_or_not_finite_have_names():
    assert [number(value) for value in (None, math.nan, math.inf, -math.inf, 3.4e36)] == [
        "–",
        "NaN",
        "∞",
        "−∞",
        "3.4e+36",
    ]


@given(ANY_TEXT)
def test_visible_text_holds_no_control_format_or_surrogate_that_acts(text):
    shown = visible(text)
    shown.encode("utf-8")
    kinds = {unicodedata.category(letter) for letter in shown if letter not in "\n\t"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    directions = {unicodedata.bidirectional(letter) for letter in shown}
    assert not directions & {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}


@given(st.text(st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="\u200e\u200f")))
def test_visible_leaves_ordinary_text_alone(text):
    assert visible(text) == text


@given(ANY_TEXT, ANY_TEXT)
def test_split_texts_join_again_and_differ_at_once(golden, faulty):
    common, rest, other = split_at_difference(golden, faulty)
    assert common + rest == golden
    assert common + other == faulty
    assert not rest or not other or rest[0] != other[0]
