from dataclasses import replace
from math import exp, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import Letters

from aftershock.errors import ContractError
from aftershock.tasks import Item, RowResult, encode, judge, matches, perplexity, rouge1

LETTERS = Letters()
CHOICE = Item("m", "choice", "g", ("q",) * 3, (" a", " bbbb", " cc"), 1)
LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=5).map(tuple)


def scored(*rows: tuple[float, ...], finite: bool = True) -> tuple[RowResult, ...]:
    return tuple(RowResult((5,) * len(row), row, finite) for row in rows)


def generated(text: str, **fields: object) -> tuple[Item, tuple[RowResult, ...]]:
    item = Item("t", "generation", "g", ("q",), max_new_tokens=20)
    return replace(item, **fields), (RowResult(tuple(map(ord, text)), (), True),)


@given(st.lists(LOGPROBS, min_size=3, max_size=3))
def test_choice_is_the_largest_sum_and_scores_its_margin(rows):
    answer = judge(CHOICE, scored(*rows), LETTERS)
    sums = [sum(row) for row in rows]
    assert sums[int(answer.output)] == pytest.approx(max(sums))
    assert answer.right == (answer.output == "1")
    assert answer.score == pytest.approx(sums[1] - max(sums[0], sums[2]))
    assert (answer.score > 0) <= answer.right


def test_a_tie_goes_to_the_lowest_index():
    assert judge(CHOICE, scored((-2.0,), (-1.0,), (-0.5, -0.5)), LETTERS).output == "1"


def test_length_normalisation_divides_by_characters():
    rows = scored((-2.0,), (-3.0,), (-9.0,))
    assert judge(CHOICE, rows, LETTERS).output == "0"
    assert judge(replace(CHOICE, length_normalised=True), rows, LETTERS).output == "1"


def test_nan_never_wins():
    answer = judge(CHOICE, scored((nan,), (-1.0,), (-2.0,)), LETTERS)
    assert (answer.output, answer.right) == ("1", True)


def test_nothing_finite_scores_minus_infinity():
    answer = judge(CHOICE, scored((nan,), (nan,), (nan,), finite=False), LETTERS)
    assert (answer.finite, answer.score) == (False, -inf)


def test_missing_results_break_the_contract():
    with pytest.raises(ContractError, match="3 rows but 2 results"):
        judge(CHOICE, scored((-1.0,), (-1.0,)), LETTERS)


def test_cloze_needs_every_token_greedy():
    item = Item("c", "cloze", "g", ("x",), (" ab",), " ab")
    (row,) = encode(item, LETTERS)
    hit = judge(item, (RowResult(row.continuation, (-0.1, -0.2, -0.3), True),), LETTERS)
    assert (hit.output, hit.right, hit.score) == (" ab", True, pytest.approx(-0.2))
    miss = judge(item, (RowResult((*row.continuation[:-1], 99), (-0.1, -0.2, -0.3), True),), LETTERS)
    assert (miss.output, miss.right) == (" ac", False)


@given(LOGPROBS)
def test_loss_is_the_mean_and_reads_back_equal(row):
    answer = judge(Item("t", "lm", "lm", ("",), ("text",)), scored(row), LETTERS)
    assert float(answer.output) == -answer.score == pytest.approx(-sum(row) / len(row))
    assert answer.right is None


def test_text_ends_at_the_first_stop_and_tokens_with_it():
    item, results = generated(" one.\ntwo ### x", stop=("###", "\n"))
    answer = judge(item, results, LETTERS)
    assert answer.output == "one."
    assert LETTERS.decode(answer.tokens, skip_special_tokens=False) == " one.\n"


def test_text_without_stop_is_kept_whole():
    item, results = generated(" one", stop=("\n",))
    assert judge(item, results, LETTERS).tokens == results[0].tokens


@pytest.mark.parametrize(
    ("match", "reference", "text", "right"),
    [
        ("exact", "Paris", " paris. ", True),
        ("exact", "Paris", "Paris, France", False),
        ("exact", r"\frac{1}{2}", r"so \boxed{3} or \boxed{\frac{1}{2}}", True),
        ("exact", "2", r"\boxed{3}", False),
        ("numeric", "18", "16 - 3 = 13, so $18.00.", True),
        ("numeric", "70000", "profit of 70,000 dollars", True),
        ("numeric", "-3", "x = -3", True),
        ("numeric", "3", "6-3", True),
        ("numeric", "3", "no number", False),
        ("numeric", "5", "5 and then 6", False),
        ("letter", "B", "(B) because A is wrong", True),
        ("letter", "B", "Because", False),
        ("contains", "cat", "A CAT sat", True),
        ("contains", "cat", "category", False),
        ("contains", "C++", "I like C++.", True),
        ("rouge1", "the red house", "the house red", True),
        ("rouge1", "the red house", "a blue car", False),
    ],
)
def test_matches(match, reference, text, right):
    item, _ = generated("", match=match, answer=reference)
    assert matches(item, text)[0] is right


def test_text_without_reference_is_neither_right_nor_wrong():
    item, results = generated("anything")
    answer = judge(item, results, LETTERS)
    assert (answer.right, answer.score) == (None, 0.0)


@given(st.text(max_size=30), st.text(max_size=30))
def test_rouge1_is_a_symmetric_share(one, other):
    assert 0.0 <= rouge1(one, other) == rouge1(other, one) <= 1.0
    assert rouge1(one, one) == 1.0


def test_rouge1_by_hand():
    # 2 shared of 3 and 4 words: precision 2/3, recall 2/4, F1 4/7.
    assert rouge1("The cat sat", "the dog sat down") == pytest.approx(4 / 7)
    assert rouge1("你好吗", "你好") == pytest.approx(4 / 5)


def test_perplexity_weighs_tokens_not_rows():
    assert perplexity(scored((-1.0, -1.0, -1.0), (-5.0,))) == pytest.approx(exp(2.0))
