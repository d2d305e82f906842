import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import Letters

from aftershock.errors import InputError
from aftershock.tasks import Item, Row, encode, windows

PLAIN = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)


def cloze(context: str, continuation: str) -> Item:
    return Item("c", "cloze", "g", (context,), (continuation,), continuation)


@given(PLAIN, PLAIN.filter(bool), st.sampled_from([(), (1,)]))
def test_context_and_continuation_hold_the_whole_text_once(context, continuation, prefix):
    tokenizer = Letters(prefix=prefix)
    (row,) = encode(cloze(context, continuation), tokenizer)
    special = len(row.context) - len(context.rstrip(" "))
    assert tokenizer.decode(row.context[special:] + row.continuation, skip_special_tokens=False) == (
        context + continuation
    )
    assert len(row.context) >= 1


def test_trailing_space_moves_to_the_continuation():
    (row,) = encode(cloze("ab ", "c"), Letters())
    assert row == Row((97, 98), (32, 99))


def test_a_merge_across_the_border_does_not_leak_the_continuation_into_the_context():
    (row,) = encode(cloze("ab", "c"), Letters(merges=("bc",)))
    assert row == Row((97, 98), (99,))


def test_a_merge_within_the_continuation_is_kept():
    (row,) = encode(cloze("ab", " cd"), Letters(merges=(" c",)))
    assert row == Row((97, 98), (0x110000, 100))


@pytest.mark.parametrize(
    ("tokenizer", "start"),
    [(Letters(), 1), (Letters(bos_token_id=None), 2), (Letters(prefix=(7,)), 7), (Letters(bos_token_id=0), 0)],
)
def test_empty_context_becomes_one_special_token(tokenizer, start):
    (row,) = encode(Item("t", "lm", "lm", ("",), ("ab",)), tokenizer)
    assert row == Row((start,), (97, 98))


def test_empty_context_without_special_tokens_is_refused():
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        encode(cloze("", "a"), Letters(bos_token_id=None, eos_token_id=None))


def test_continuation_without_tokens_is_refused():
    with pytest.raises(InputError, match="'c' has a continuation without tokens"):
        encode(cloze("a", ""), Letters())


def test_generation_has_no_continuation():
    item = Item("g", "generation", "g", ("ab",), max_new_tokens=4)
    assert encode(item, Letters(prefix=(1,))) == (Row((1, 97, 98), ()),)


def test_choice_has_a_row_per_option_with_one_context():
    rows = encode(Item("m", "choice", "g", ("q", "q"), (" a", " bc"), 0), Letters())
    assert rows == (Row((113,), (32, 97)), Row((113,), (32, 98, 99)))


@given(st.text(min_size=2, max_size=60), st.integers(2, 20))
def test_windows_predict_every_token_but_each_first(text, length):
    rows = windows(text, Letters(), length)
    tokens = [token for row in rows for token in (*row.context, *row.continuation)]
    # A last window of one token predicts nothing and is left out.
    assert tokens == [ord(c) for c in text][: len(tokens)]
    assert len(text) - len(tokens) <= 1
    assert all(len(row.context) == 1 and 1 <= len(row.continuation) <= length - 1 for row in rows)


def test_a_window_of_one_token_is_refused():
    with pytest.raises(InputError, match="predicts nothing"):
        windows("ab", Letters(), 1)
