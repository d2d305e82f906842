"""Batches: the same items together, always, and each token sequence once."""

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from small_tasks import ITEMS, choice, cloze, generation, lm

from aftershock.replay import ReferenceExecutor, make_batches
from tiny_models import tiny_loaded

model_of = cache(tiny_loaded)


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(0, 2**40))
def test_every_item_is_in_one_batch_of_its_kind(size: int, seed: int) -> None:
    batches = make_batches(ITEMS, model_of("llama"), size, seed)
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert sorted(item.id for batch in batches for item in batch.items) == sorted(item.id for item in ITEMS)
    for batch in batches:
        assert 1 <= len(batch.items) <= size
        assert len({item.kind for item in batch.items}) == 1
        assert batch.generates == (batch.items[0].kind == "generation")
    # Only the last batch of a kind is short.
    short = [batch.items[0].kind for batch in batches if len(batch.items) < size]
    assert len(short) == len(set(short))


def test_batches_depend_on_the_seed_alone() -> None:
    model = model_of("llama")
    assert make_batches(ITEMS, model, 3, 5) == make_batches(ITEMS, model, 3, 5)
    orders = {tuple(item.id for b in make_batches(ITEMS, model, 3, seed) for item in b.items) for seed in range(6)}
    assert len(orders) > 1


def test_letters_of_one_question_share_a_sequence() -> None:
    (batch,) = make_batches(
        [choice("a", "Q:", ("A", "B", "C")), choice("b", "R:", ("A", "BB"))], model_of("llama"), 2, 0
    )
    number = {item.id: place for place, item in enumerate(batch.items)}
    # The last token of a continuation is never fed, so single letters feed nothing.
    assert [answer for _, answer in batch.sequences].count(()) == 2
    assert len(batch.sequences) == 3
    assert len(set(batch.sequence_of[number["a"]])) == 1
    assert len(set(batch.sequence_of[number["b"]])) == 2


def test_a_sequence_carries_its_row() -> None:
    for batch in make_batches(ITEMS, model_of("llama"), 3, 1):
        assert len(set(batch.sequences)) == len(batch.sequences)
        for rows, sequences in zip(batch.rows, batch.sequence_of, strict=True):
            for row, sequence in zip(rows, sequences, strict=True):
                assert batch.sequences[sequence] == (row.context, row.continuation[:-1])


def test_options_of_one_item_share_its_context() -> None:
    items = [choice("a", "Q:", ("one", "two", "three")), choice("b", "Q:", ("four", "five"))]
    (batch,) = make_batches(items, model_of("llama"), 2, 0)
    for sequences in batch.sequence_of:
        assert {batch.owners[sequence] for sequence in sequences} == {sequences[0]}


def test_decode_passes_are_the_tokens_fed_after_the_context() -> None:
    model = model_of("llama")

    def passes(*items) -> int:
        (batch,) = make_batches(items, model, 9, 0)
        return batch.decode_passes

    assert passes(choice("a", "Q:", ("A", "B"))) == 0
    assert passes(cloze("c", "Q:", "four")) == 3
    assert passes(lm("l", "Q", "abcdef")) == 5
    assert passes(generation("g", "Q", 8), generation("h", "Q", 5)) == 7


def test_items_never_share_a_sequence():
    model = tiny_loaded("llama")
    twins = [generation("a", "Hi", 3), generation("b", "Hi", 2)]
    (batch,) = make_batches(twins, model, 2, 0)
    assert [len(sequences) for sequences in batch.sequence_of] == [1, 1]
    answers = [item.answer.tokens for item in ReferenceExecutor(model).golden(batch).items]
    longer, shorter = sorted(answers, key=len, reverse=True)
    assert longer[: len(shorter)] == shorter
