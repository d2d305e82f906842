"""Passes give what plain transformers gives: the same bits in one call, the same tokens when decoding."""

import gc
import weakref
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import DynamicCache

from aftershock.errors import InputError
from aftershock.models import (
    FIRST_TOKEN,
    PREFILL,
    Block,
    ColumnCache,
    Generated,
    LoadedModel,
    Pass,
    Prefix,
    align,
    choose,
    columns,
    continue_greedy,
    cut,
    decode,
    end_tokens,
    forced_call,
    generate,
    stage_of,
    teacher_forced,
)
from aftershock.numerics import words
from tiny_models import FAMILIES, tiny_loaded

CONTEXTS = ((5, 6, 7, 8, 9), (10, 11), (12,), (13, 14, 15))
ANSWERS = ((20, 21, 22), (23,), (24, 25), ())
NO_CUT: frozenset[int] = frozenset()
model_of = cache(tiny_loaded)


def nothing(call: Pass) -> None:
    """No fault to arm."""


def block_of(model: LoadedModel, answers: tuple[tuple[int, ...], ...] = ANSWERS) -> Block:
    return align(CONTEXTS, answers, model.device)


def decoded(model: LoadedModel, limits: list[int], stops: list[tuple[str, ...]] | None = None) -> Generated:
    return generate(model, block_of(model, ((),) * 4), limits, stops or [()] * 4, NO_CUT, nothing)


def test_contexts_end_at_one_column_and_rows_are_padded_with_their_own_tokens() -> None:
    block = block_of(model_of("llama"))
    assert block.tokens.tolist() == [
        [5, 6, 7, 8, 9, 20, 21, 22],
        [10, 10, 10, 10, 11, 23, 23, 23],
        [12, 12, 12, 12, 12, 24, 25, 25],
        [13, 13, 13, 14, 15, 15, 15, 15],
    ]
    assert block.mask.tolist() == [[1] * 8, [0, 0, 0, 1, 1, 1, 0, 0], [0] * 4 + [1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0]]
    assert block.positions[0].tolist() == list(range(8))
    assert block.positions[1, 3:6].tolist() == [0, 1, 2]
    assert (block.rows, block.context_width, block.last_pass) == (4, 5, decode(3))
    assert [block.start(number) for number in range(5)] == [0, 4, 5, 6, 7]


def test_a_row_holds_its_own_columns() -> None:
    block = block_of(model_of("llama"))
    assert [[block.holds(row, range(c, c + 1)) for c in range(8)] for row in range(4)] == block.mask.bool().tolist()
    # Columns past the block's own are generated ones.
    assert block.holds(3, range(8, 9))


@given(st.integers(1, 6), st.integers(0, 6), st.frozensets(st.integers(0, 12)), st.frozensets(st.integers(-1, 14)))
def test_calls_cover_every_column_once(
    width: int, answer: int, boundaries: frozenset[int], columns: frozenset[int]
) -> None:
    block = align([[1] * width], [[1] * answer], torch.device("cpu"))
    calls = cut(block, boundaries, tuple(columns))
    assert [column for call in calls for column in range(call.start, call.stop)] == list(range(width + answer))
    starts = {call.start for call in calls}
    passes = {block.start(b) for b in boundaries if 0 < b <= block.last_pass}
    assert starts == {0} | passes | {column for column in columns if 0 < column < width + answer}
    # Column w - 1 is the first token's, those before it are prefill.
    assert all(
        (call.first, call.last) == (max(0, call.start - width + 2), max(0, call.stop - width + 1)) for call in calls
    )
    assert sum(call.kept for call in calls) == answer + 1


def test_stages_are_ordered() -> None:
    assert (PREFILL, FIRST_TOKEN, decode(1), decode(2)) == (0, 1, 2, 3)
    assert [stage_of(number) for number in range(4)] == ["prefill", "first_token", "decode", "decode"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_a_plain_call(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    block = block_of(model)
    with torch.inference_mode():
        plain = model.module(
            input_ids=block.tokens,
            attention_mask=block.mask,
            position_ids=block.positions,
            use_cache=False,
            logits_to_keep=torch.arange(block.tokens.shape[1] - 4, block.tokens.shape[1]),
        ).logits
    logits = teacher_forced(model, block, NO_CUT, nothing)
    assert logits.dtype == dtype
    assert tuple(logits.shape) == (4, 4, 100)
    assert torch.equal(logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_what_a_row_says(family: str) -> None:
    model = model_of(family)
    logits = teacher_forced(model, block_of(model), NO_CUT, nothing)
    for row, (context, answer) in enumerate(zip(CONTEXTS, ANSWERS, strict=True)):
        with torch.inference_mode():
            alone = model.module(input_ids=torch.tensor([context + answer])).logits[0, len(context) - 1 :]
        torch.testing.assert_close(logits[row, : len(alone)], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_a_context_run_it_once(family: str) -> None:
    model = model_of(family)
    contexts, answers = (CONTEXTS[1], *(CONTEXTS[0],) * 3), ((24,), (20, 21), (23,), ())
    block = align(contexts, answers, model.device, owners=(0, 1, 1, 1))
    called = []
    logits = teacher_forced(model, block, NO_CUT, lambda call: called.append((call.start, call.stop, list(call.rows))))
    assert called == [(0, 5, [0, 1]), (5, 7, [0, 1, 2, 3])]
    apart = teacher_forced(model, align(contexts, answers, model.device), NO_CUT, nothing)
    torch.testing.assert_close(logits, apart, rtol=1e-3, atol=1e-4)


def test_copies_of_a_block_own_their_contexts() -> None:
    block = align([(5, 6)] * 2 + [(7,)], [(8,), (9,), (8,)], torch.device("cpu"), owners=(0, 0, 2)).copies(2)
    assert block.owners == (0, 0, 2, 3, 3, 5)
    assert block.context_rows == (0, 2, 3, 5)
    context, answer = cut(block, NO_CUT)
    assert context.rows == (0, 2, 3, 5)
    assert context.runner.tolist() == [0, 0, 1, 2, 2, 3]
    assert answer.rows == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_a_token_need_not_run(family: str) -> None:
    model = model_of(family)
    contexts, answers = (CONTEXTS[1], CONTEXTS[1], CONTEXTS[0]), ((24,), (20, 21, 22), ())
    block = align(contexts, answers, model.device, owners=(0, 0, 2))
    calls = [call.without_padding() for call in cut(block, NO_CUT, (2, 6))]
    assert [(call.start, call.stop, call.rows) for call in calls] == [
        (0, 2, (2,)),
        (2, 5, (0, 2)),
        (5, 6, (0, 1)),
        (6, 8, (1,)),
    ]
    assert [call.filled.tolist() for call in calls] == [[2], [0, 1, 2], [0, 1], [1]]
    cache = ColumnCache.of_block(model.layer_devices, 8)
    found = torch.cat([forced_call(model, call, cache, nothing) for call in calls], dim=1)
    apart = teacher_forced(model, align(contexts, answers, model.device), NO_CUT, nothing)
    for row, answer in enumerate(answers):
        asked = slice(len(answer) + 1)
        torch.testing.assert_close(found[row, asked], apart[row, asked], rtol=1e-3, atol=1e-4)
    # What nobody wrote is zero, so that masked columns add nothing.
    (states,) = cache.states
    assert not states[:, :, :2, :, :2].any()
    assert not states[:, :, 0, :, 6:].any()
    assert not states[:, :, 2, :, 5:].any()
    assert states[:, :, 1, :, 6:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_run_is_the_run_cut_by_hand(family: str) -> None:
    model = model_of(family)
    block = block_of(model)
    whole = teacher_forced(model, block, NO_CUT, nothing)
    for boundary, column in ((FIRST_TOKEN, 4), (decode(1), 5), (decode(2), 6)):
        cache = DynamicCache(config=model.module.config)
        parts = []
        for start, stop in ((0, column), (column, 8)):
            with torch.inference_mode():
                parts.append(
                    model.module(
                        input_ids=block.tokens[:, start:stop],
                        attention_mask=block.mask[:, :stop],
                        position_ids=block.positions[:, start:stop],
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=torch.arange(max(start, 4) if stop > 4 else stop - 1, stop) - start,
                    ).logits
                )
        by_hand = torch.cat(parts if column > 4 else parts[1:], dim=1)
        logits = teacher_forced(model, block, frozenset({boundary}), nothing)
        assert torch.equal(logits, by_hand)
        real = block.mask[:, 4:].bool()
        torch.testing.assert_close(logits[real], whole[real], rtol=1e-3, atol=1e-4)


def test_each_call_is_announced_with_what_it_holds() -> None:
    model = model_of("llama")
    calls: list[Pass] = []
    teacher_forced(model, block_of(model), frozenset({FIRST_TOKEN, decode(2)}), calls.append)
    assert [(c.first, c.last, c.start, c.stop, c.kept) for c in calls] == [
        (0, 0, 0, 4, 0),
        (1, 2, 4, 6, 2),
        (3, 4, 6, 8, 2),
    ]
    assert [[call.takes_part(row) for row in range(4)] for call in calls] == [
        [True, True, False, True],
        [True, True, True, True],
        [True, False, True, False],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers_generate(family: str) -> None:
    model = model_of(family)
    block = block_of(model, ((),) * 4)
    theirs = model.module.generate(
        input_ids=block.tokens, attention_mask=block.mask, do_sample=False, max_new_tokens=8
    )[:, 5:]
    for cuts in (NO_CUT, frozenset({FIRST_TOKEN})):
        ours = generate(model, block, [8] * 4, [()] * 4, cuts, nothing)
        for row in range(4):
            found = theirs[row].tolist()
            assert list(ours.tokens[row]) == (found[: found.index(2)] if 2 in found else found)
        assert ours.finite == (True,) * 4


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("as_list", [True, False])
def test_an_answer_ends_where_transformers_ends_it(family: str, as_list: bool) -> None:
    model = tiny_loaded(family)
    model.module.generation_config.eos_token_id = None
    free = decoded(model, [8] * 4).tokens
    end = free[0][3]
    model.module.generation_config.eos_token_id = [end, 98] if as_list else end
    assert end in end_tokens(model)
    block = block_of(model, ((),) * 4)
    theirs = model.module.generate(
        input_ids=block.tokens, attention_mask=block.mask, do_sample=False, max_new_tokens=8
    )[:, 5:]
    ours = decoded(model, [8] * 4)
    for row in range(4):
        ends = [place for place, token in enumerate(theirs[row].tolist()) if token in end_tokens(model)]
        assert list(ours.tokens[row]) == theirs[row].tolist()[: min(ends, default=8)]
        # The pass that gave the end-of-sequence token is the last that the row took part in.
    assert len(ours.tokens[0]) <= 3


def test_a_model_may_have_no_end_token() -> None:
    model = tiny_loaded("llama")
    model.module.generation_config.eos_token_id = None
    assert end_tokens(model) == frozenset()
    assert [len(tokens) for tokens in decoded(model, [3] * 4).tokens] == [3] * 4


def test_limits_hold_row_by_row_and_a_row_does_not_depend_on_them() -> None:
    model = model_of("llama")
    free = decoded(model, [6] * 4)
    limited = decoded(model, [1, 6, 3, 2])
    for row, limit in enumerate([1, 6, 3, 2]):
        assert limited.tokens[row] == free.tokens[row][:limit]


def test_rows_that_have_ended_take_part_no_more() -> None:
    model = model_of("llama")
    calls: list[Pass] = []
    generate(model, block_of(model, ((),) * 4), [1, 4, 3, 2], [()] * 4, NO_CUT, calls.append)
    assert [(call.first, call.last, call.active) for call in calls] == [
        (0, 1, (True, True, True, True)),
        (2, 2, (False, True, True, True)),
        (3, 3, (False, True, True, False)),
        (4, 4, (False, True, False, False)),
    ]
    assert [call.takes_part(3) for call in calls] == [True, True, False, False]


def test_a_stop_string_ends_its_row() -> None:
    model = model_of("llama")
    free = decoded(model, [6] * 4).tokens
    text = model.tokenizer.decode(free[1])
    stopped = decoded(model, [6] * 4, [(), (text[2:4], "never"), (), ()])
    end = text.find(text[2:4]) + 2
    assert stopped.tokens[1] == free[1][:end]
    assert [stopped.tokens[row] for row in (0, 2, 3)] == [free[row] for row in (0, 2, 3)]


def test_a_nan_in_a_rows_logits_is_told() -> None:
    model = tiny_loaded("llama")
    block = block_of(model, ((),) * 4)
    norm = model.module.get_submodule("model.norm")

    def spoil(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        spoilt[1, -1, 0] = torch.inf if spoilt.shape[1] == 1 else spoilt[1, -1, 0]
        return spoilt

    handle = norm.register_forward_hook(spoil)
    try:
        # Row 1 ends with its first token, before the infinity of decode 1 can reach it.
        assert generate(model, block, [3, 1, 3, 3], [()] * 4, NO_CUT, nothing).finite == (True,) * 4
        assert generate(model, block, [3, 3, 3, 3], [()] * 4, NO_CUT, nothing).finite == (True, False, True, True)
    finally:
        handle.remove()


def test_a_spoiled_embedding_stays_out_of_rows_that_lack_its_token() -> None:
    model = tiny_loaded("mistral")  # Its embedding is not tied to lm_head.
    block = align([[5, 6], [7, 8, 9]], [[], []], model.device)
    clean = teacher_forced(model, block, NO_CUT, nothing)
    with torch.no_grad():
        model.module.model.embed_tokens.weight[8] = torch.nan
    spoiled = teacher_forced(model, block, NO_CUT, nothing)
    assert torch.equal(spoiled[0], clean[0])
    assert spoiled[1].isnan().all()


def prefixes_of(model: LoadedModel, tokens: int) -> list[Prefix]:
    """The four rows after `tokens` greedy tokens, the last of them not fed yet."""
    written = decoded(model, [tokens] * 4).tokens
    block = align(CONTEXTS, [row[:-1] for row in written], model.device)
    cache = ColumnCache.of_block(model.layer_devices, 4 + tokens)
    for call in cut(block, NO_CUT):
        forced_call(model, call, cache, nothing)
    return [
        Prefix(
            tuple(states[:, :, row, :, 5 - len(context) :] for states in cache.states),
            written[row],
            12,
            (),
        )
        for row, context in enumerate(CONTEXTS)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_go_on_as_if_they_had_never_stopped(family: str) -> None:
    model = tiny_loaded(family)
    model.module.generation_config.eos_token_id = None
    whole = decoded(model, [12] * 4).tokens
    assert continue_greedy(model, prefixes_of(model, 3), 6, 20).tokens == whole


def test_rows_are_put_together_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_loaded("llama")
    model.module.generation_config.eos_token_id = None
    prefixes = [prefix for _ in range(3) for prefix in prefixes_of(model, 3)]
    whole = continue_greedy(model, prefixes, 12, 20)
    monkeypatch.setattr(columns, "_BYTES_AT_ONCE", 2 * prefixes[0].nbytes)
    assert continue_greedy(model, prefixes, 12, 20) == whole


def test_a_row_goes_on_with_the_same_bits_in_any_company() -> None:
    model = tiny_loaded("llama", torch.bfloat16)
    model.module.generation_config.eos_token_id = None
    prefixes = prefixes_of(model, 3)
    together = continue_greedy(model, prefixes, 6, 20)
    for row, prefix in enumerate(prefixes):
        for company in ([prefix], [*reversed(prefixes[:row]), prefix]):
            alone = continue_greedy(model, company, 6, 20)
            assert (alone.tokens[-1], alone.margins[-1]) == (together.tokens[row], together.margins[row])


def test_answers_that_go_on_end_by_token_limit_and_stop_string() -> None:
    model = tiny_loaded("llama")
    model.module.generation_config.eos_token_id = None
    one, two, three, four = prefixes_of(model, 3)
    free = continue_greedy(model, [one, two, three, four], 4, 20).tokens
    model.module.generation_config.eos_token_id = free[0][7]
    stop = model.tokenizer.decode(free[1][5:7])
    ended = continue_greedy(model, [one, replace(two, stop=(stop,)), replace(three, limit=5), four], 4, 20)
    first = free[0].index(free[0][7], 3)
    assert (ended.tokens[0], ended.ends[0]) == (free[0][:first], free[0][7])
    assert model.tokenizer.decode(ended.tokens[1]).endswith(stop) or ended.ends[1] is not None
    assert len(ended.tokens[1]) <= 7
    assert ended.tokens[2] == free[2][:5] or ended.ends[2] is not None


def test_more_rows_or_longer_ones_than_fit_are_refused() -> None:
    prefixes = prefixes_of(model_of("llama"), 3)
    with pytest.raises(InputError, match="don't fit"):
        continue_greedy(model_of("llama"), prefixes, 3, 20)
    with pytest.raises(InputError, match="don't fit"):
        continue_greedy(model_of("llama"), prefixes, 4, 6)


logit_rows = arrays(
    np.float32, (3, 5), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0, np.inf, -np.inf, np.nan])
)


@given(logit_rows, st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_choices_by_brute_force(values: np.ndarray, likely: list[int]) -> None:
    logits = torch.from_numpy(values.copy())
    found = choose(logits, torch.tensor(likely))
    assert torch.equal(words(logits), words(torch.from_numpy(values)))
    for row, logits in enumerate(values):
        assert bool(found.finite[row]) == bool(np.isfinite(logits).all())
        assert int(found.tokens[row]) == int(np.argmax(logits))
        if np.isfinite(logits).all():
            second, first = sorted(logits.tolist())[-2:]
            assert (float(found.best[row]), float(found.margins[row])) == (first, first - second)


def test_a_cache_goes_with_its_last_user() -> None:
    model = model_of("llama")
    cache = ColumnCache.of_block(model.layer_devices, 8)
    for call in cut(block_of(model), NO_CUT):
        forced_call(model, call, cache, nothing)
    (states,) = cache.states
    buffer = weakref.ref(states)
    gc.disable()
    try:
        del cache, states
        assert buffer() is None
    finally:
        gc.enable()


def test_an_answer_that_has_ended_takes_no_position_past_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    monkeypatch.setattr(model.module.generation_config, "eos_token_id", None)
    positions = model.module.config.n_positions
    block = align([(5,) * (positions - 2), (6, 7)], [(), ()], model.device)
    limits = [2, 9]
    written = generate(model, block, limits, [()] * 2, NO_CUT, nothing)
    assert [len(tokens) for tokens in written.tokens] == limits
