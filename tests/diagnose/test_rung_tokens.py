"""Ids and positions that an engine read, against those that the reference would have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.capture import Request
from aftershock.diagnose.prompts import Expected, expected
from aftershock.diagnose.rungs.tokens import Special, positions_rung, token_cause, tokens_rung
from tiny_models import tiny_tokenizer

SPECIAL = Special(bos=1, eos=2)
TEXT = tuple(range(10, 40))


def request_of(tokens, positions=None, **more):
    return Request(
        id="0", tokens=tokens, positions=tuple(range(len(tokens))) if positions is None else positions, **more
    )


@pytest.mark.parametrize(
    ("found", "wanted", "cause"),
    [
        ((1, 1, *TEXT), (1, *TEXT), "double_bos"),
        (TEXT, (1, *TEXT), "missing_bos"),
        ((1, *TEXT), (1, *TEXT, 2), "missing_eos"),
        ((1, *TEXT[:20]), (1, *TEXT), "truncated_prompt"),
        ((1, *TEXT[12:]), (1, *TEXT), "truncated_prompt"),
        ((1, *TEXT[:10], *TEXT[20:]), (1, *TEXT), "truncated_prompt"),
        ((1, 4, *TEXT, 5), (1, *TEXT), "template"),
        ((1, *TEXT[:10], 50, 51, *TEXT[11:]), (1, *TEXT), "tokenizer"),
        ((1, *TEXT[:10], *TEXT[11:]), (1, *TEXT), "tokenizer"),
    ],
)
def test_what_was_done_to_a_text_is_told_by_its_ids(found, wanted, cause):
    assert token_cause(found, Expected(wanted), SPECIAL, None) == cause


@given(st.lists(st.integers(3, 99), min_size=1), st.integers(1, 4))
def test_several_beginnings_are_always_told(text, more):
    wanted = Expected((1, *text))
    assert token_cause((1,) * (more + 1) + tuple(text), wanted, SPECIAL, None) == "double_bos"


def test_a_chat_without_its_generation_prompt_or_with_another_template():
    own = Expected((1, *TEXT, 5, 6), plain=(1, *TEXT), text="<a>hi<b>")
    assert token_cause((1, *TEXT), own, SPECIAL, None) == "generation_prompt"
    assert token_cause((1, *TEXT[:8], 6, *TEXT[8:], 5), own, SPECIAL, None) == "template"
    assert token_cause((1, *TEXT[:8], 6, *TEXT[8:], 5), own, SPECIAL, "hi") == "template"
    assert token_cause((1, *TEXT[:8], 7, *TEXT[9:], 5, 6), own, SPECIAL, "<a>hi<b>") == "tokenizer"


def test_the_rung_counts_prompts_and_ignores_what_was_sampled():
    requests = [request_of((1, *TEXT, 50), prompt_tokens=31, sampled=(50, 51)), request_of((1, 1, *TEXT))]
    wanted = [Expected((1, *TEXT))] * 2
    rung = tokens_rung(requests, wanted, SPECIAL)
    assert rung.state == "differs"
    assert [(one.component, one.cause) for one in rung.findings] == [("tokens", "double_bos")]
    assert "1 of 2 prompts" in rung.said
    assert tokens_rung(requests[:1], wanted[:1], SPECIAL).state == "agrees"
    assert tokens_rung(requests, [None, None], SPECIAL).state == "not checked"


def test_expected_ids_come_from_the_prompt_or_else_from_the_text_that_was_read():
    tokenizer = tiny_tokenizer()
    ids = tuple(tokenizer("abc")["input_ids"])
    silent, telling = request_of((5,)), request_of((5,), text="abc")
    assert expected(tokenizer, None, silent) is None
    assert expected(tokenizer, None, telling).ids == ids
    assert expected(tokenizer, "abc", silent).ids == ids
    assert expected(None, [7, 8], silent).ids == (7, 8)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    chat = expected(tokenizer, [{"role": "user", "content": "abc"}], silent)
    assert chat.text == "abc\n>"
    assert (*chat.plain, tokenizer(">")["input_ids"][0]) == chat.ids


@pytest.mark.parametrize(
    ("positions", "cause", "found"),
    [
        ((1, 2, 3, 4), "position_offset", 1),
        ((0, 1, 0, 1), "position_reset", None),
        ((0, 1, 3, 4), "position_offset", None),
    ],
)
def test_positions_that_do_not_count_from_zero_are_a_lead(positions, cause, found):
    rung = positions_rung([request_of((5, 6, 7, 8), positions)])
    assert [(one.cause, one.found, one.confirmed) for one in rung.findings] == [(cause, found, False)]
    assert positions_rung([request_of((5, 6, 7, 8))]).state == "agrees"
