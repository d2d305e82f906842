"""Faults in the key-value cache: a word of it, as it is written or where it lies, and nothing else."""

import pytest
import torch
from live_models import CONTEXTS, all_words, block_of, hooked, model_of, same_words
from transformers import DynamicCache

from aftershock.errors import ContractError, InputError
from aftershock.faults import parse_faults, splits
from aftershock.inject import Injection, Struck
from aftershock.models import ColumnCache, LoadedModel, Pass, align, cut, forced_call, generate, teacher_forced
from aftershock.numerics import words
from tiny_models import FAMILIES, tiny_loaded

ATTENTION = "model.layers.0.self_attn"


def forced(model: LoadedModel, line: str) -> tuple[torch.Tensor, tuple[Struck, ...]]:
    """Logits of a teacher-forced run under the faults, and what they struck."""
    faults = parse_faults(line)
    with Injection(model, faults) as injection:
        logits = teacher_forced(model, block_of(model), splits(faults), injection.begin_pass)
    return logits, injection.struck


def written(model: LoadedModel, line: str) -> tuple[tuple[int, ...], ...]:
    """Greedy answers under the faults."""
    faults = parse_faults(line)
    block = align(CONTEXTS, [()] * 4, model.device)
    with Injection(model, faults) as injection:
        return generate(model, block, [6] * 4, [()] * 4, splits(faults), injection.begin_pass).tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moment", ["prefill:0", "prefill:0.7", "first_token", "decode:2"])
@pytest.mark.parametrize(
    ("family", "cached", "projected"),
    [
        ("llama", "value model.layers.0.self_attn[1,3]", "activation model.layers.0.self_attn.v_proj[11]"),
        ("gpt2", "value transformer.h.1.attn[2,5]", "activation transformer.h.1.attn.c_attn[85]"),
        ("gpt2", "key transformer.h.1.attn[2,5]", "activation transformer.h.1.attn.c_attn[53]"),
    ],
)
def test_a_word_wrong_from_the_start_is_a_wrong_projection(
    family: str, cached: str, projected: str, moment: str, dtype: torch.dtype
) -> None:
    """Values, and keys that nothing turns by their position, are stored as they were projected."""
    model = model_of(family, dtype)
    logits, struck = forced(model, f"{cached} of {moment} replace 30.0")
    expected, others = forced(model, f"{projected} replace 30.0 at {moment}")
    clean, _ = forced(model, f"{cached} of decode:9 replace 30.0")
    assert torch.equal(words(logits), words(expected))
    assert not torch.equal(words(logits), words(clean))
    assert [(one.row, one.index[0], one.old_bits) for one in struck] == [
        (one.row, one.index[0], one.old_bits) for one in others
    ]
    assert written(model, f"{cached} of {moment} replace 30.0") == written(
        model, f"{projected} replace 30.0 at {moment}"
    )


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize(
    "trigger", ["from first_token", "from decode:2", "at decode:1", "from first_token to decode:2"]
)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "mixtral"])
def test_a_word_that_goes_wrong_later_is_one_changed_by_hand(family: str, trigger: str, part: str) -> None:
    """Plain transformers, its own cache changed between two calls."""
    model = model_of(family)
    attention = next(site.module for site in model.components.cached if site.layer == 1)
    faults = parse_faults(f"{part} {attention}[1,3] of prefill:0.5 replace 500.0 {trigger}")
    block, (fault,) = block_of(model), faults
    cache, found = DynamicCache(config=model.module.config), []
    old: torch.Tensor | None = None
    # One call a pass: rows 0, 1, 3 have prefill tokens, the middle of them at these columns.
    rows, columns = torch.tensor([0, 1, 3]), torch.tensor([2, 3, 3])
    for number, (start, stop) in enumerate(((0, 4), (4, 5), (5, 6), (6, 7), (7, 8))):
        with torch.inference_mode():
            if number:
                states = cache.layers[1].keys if part == "key" else cache.layers[1].values
                index = (rows, 1, columns, 3)
                if fault.trigger.covers(number) and old is None:
                    old = states[index].clone()
                    states[index] = 500.0
                elif not fault.trigger.covers(number) and old is not None:
                    states[index] = old
            found.append(
                model.module(
                    input_ids=block.tokens[:, start:stop],
                    attention_mask=block.mask[:, :stop],
                    position_ids=block.positions[:, start:stop],
                    past_key_values=cache,
                ).logits
            )
    with Injection(model, faults) as injection:
        logits = teacher_forced(model, block, frozenset(range(1, 5)), injection.begin_pass)
    clean = teacher_forced(model, block, frozenset(range(1, 5)), lambda call: None)
    real = block.mask[:, 4:].bool()
    torch.testing.assert_close(logits[real], torch.cat(found[1:], dim=1)[real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[real], clean[real], rtol=1e-3, atol=1e-4)
    # Rows whose answers have ended by then read nothing.
    reading = [row for row in (0, 1, 3) if block.answer_lengths[row] >= fault.first - 1]
    assert {(one.row, one.index) for one in injection.struck} == {
        (row, ((2, 0, None, 1)[row], 1, 3)) for row in reading
    }
    assert injection.reached_rows == set(reading)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_read_that_goes_wrong_leaves_the_cache_as_it_was(family: str) -> None:
    model = model_of(family)
    attention = model.components.cached[0].module
    block = block_of(model)

    def states_under(line: str) -> torch.Tensor:
        faults = parse_faults(line)
        cache = ColumnCache.of_block(model.layer_devices, 8)
        with Injection(model, faults) as injection:
            for call in cut(block, frozenset(range(1, 5))):
                forced_call(model, call, cache, injection.begin_pass)
        # The first layer's own keys and values, which no attention comes before.
        return cache.states[0][0].clone()

    line = f"value {attention}[1,3] of first_token replace 5.0"
    clean = states_under(f"{line} at decode:4")
    for transient in ("at first_token", "at decode:1", "from decode:1 to decode:3", "from decode:2 to decode:9"):
        assert torch.equal(states_under(f"{line} {transient}"), clean)
        # Two faults of one word are undone in turn.
        assert torch.equal(states_under(f"{line} {transient} & {line.replace('5.0', '7.0')} {transient}"), clean)
    for lasting, rows in (("always", range(4)), ("from decode:2", (0, 2))):
        wrong = (states_under(f"{line} {lasting}") != clean).nonzero()
        assert wrong.tolist() == [[1, row, 1, 4, 3] for row in rows]
    assert hooked(model) == {}


def test_rows_that_share_a_context_share_its_wrong_words() -> None:
    model = model_of("llama")
    contexts, answers = (CONTEXTS[0],) * 3, ((20, 21), (22,), ())
    for trigger in ("always", "from first_token", "at decode:1", "from prefill to decode:1"):
        faults = parse_faults(f"value {ATTENTION}[1,3] of prefill:1 replace 9.0 {trigger}")
        found = []
        for owners in ((0, 0, 0), (0, 1, 2)):
            block = align(contexts, answers, model.device, owners)
            with Injection(model, faults) as injection:
                found.append(teacher_forced(model, block, splits(faults), injection.begin_pass))
        shared, apart = found
        torch.testing.assert_close(shared[0], apart[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(shared[1, :2], apart[1, :2], rtol=1e-3, atol=1e-4)


def test_only_the_rows_named_are_struck() -> None:
    model = model_of("llama")
    faults = parse_faults(f"key {ATTENTION}[1,3] of first_token replace 9.0")
    clean = teacher_forced(model, block_of(model), frozenset(), lambda call: None)
    with Injection(model, faults, [range(1, 3)]) as injection:
        logits = teacher_forced(model, block_of(model), frozenset(), injection.begin_pass)
    assert [one.row for one in injection.struck] == [1, 2]
    assert injection.reached_rows == {1, 2}
    assert torch.equal(logits[[0, 3]], clean[[0, 3]])


def test_a_token_that_a_sliding_layer_has_let_go_is_not_struck() -> None:
    model = model_of("gemma3")
    (sliding, full) = dict.fromkeys(site.module for site in model.components.cached)
    context, answer = tuple(range(5, 30)), (40, 41, 42)

    def written(line: str) -> int:
        faults = parse_faults(line)
        with Injection(model, faults) as injection:
            block = align([context], [()], model.device)
            generate(model, block, [4], [()], splits(faults), injection.begin_pass)
        return len(injection.struck)

    def given(line: str) -> int:
        faults = parse_faults(line)
        with Injection(model, faults) as injection:
            block = align([context], [answer], model.device)
            teacher_forced(model, block, splits(faults), injection.begin_pass)
        return len(injection.struck)

    # The window of 16 tokens that ends with the first token of the answer, number 25, begins with number 10.
    for attention, entry, begin, struck in (
        (sliding, "prefill:9", "from decode:1", 0),
        (sliding, "prefill:10", "from decode:1", 1),
        (sliding, "prefill:10", "from decode:2", 0),
        (sliding, "prefill:0", "always", 1),
        (full, "prefill:0", "from decode:1", 1),
    ):
        line = f"value {attention}[0,3] of {entry} replace 9.0 {begin}"
        assert (written(line), given(line)) == (struck, struck)


def test_a_nan_that_a_sliding_layer_has_let_go_reaches_nothing() -> None:
    model = model_of("gemma3")
    block = align([tuple(range(5, 30))], [(40, 41, 42)], model.device)
    faults = parse_faults("value model.layers.0.self_attn[0,3] of prefill:4 replace nan from decode:1")
    with Injection(model, faults) as injection:
        logits = teacher_forced(model, block, splits(faults), injection.begin_pass)
    assert torch.equal(logits, teacher_forced(model, block, splits(faults), lambda call: None))


def test_a_fault_that_ends_when_its_word_is_let_go_leaves_the_other_words_alone() -> None:
    model = tiny_loaded("gemma3")
    (sliding, _) = dict.fromkeys(site.module for site in model.components.cached)
    block = align([tuple(range(5, 15))], [()], model.device)
    found: list[list[torch.Tensor]] = []
    for end in ("to decode:10", ""):
        faults = parse_faults(f"value {sliding}[0,3] of prefill:0 replace 9.0 from first_token {end}")
        logits: list[torch.Tensor] = []
        keep = model.module.lm_head.register_forward_hook(lambda _, __, output, kept=logits: kept.append(output))
        with Injection(model, faults) as injection:
            generate(model, block, [15], [()], splits(faults), injection.begin_pass)
        keep.remove()
        found.append(logits)
    # Its window is 16 tokens: the word is gone before decode:10.
    ended, lasting = map(torch.cat, found)
    assert len(ended) > 12
    assert torch.equal(words(ended), words(lasting))


def test_what_was_due_and_did_not_run_is_an_error() -> None:
    model = model_of("llama")
    call = Pass(block_of(model), 0, 4, 0, 8, 4, (True,) * 4, (0, 1, 2, 3))
    for moment, reason in (
        ("of first_token flip 1", "never made what it strikes"),
        ("of prefill:0 flip 1 from decode:2", "begins inside a forward call"),
        ("of prefill:0 flip 1 at prefill", "ends inside a forward call"),
    ):
        faults = parse_faults(f"key {ATTENTION}[1,3] {moment}")
        with pytest.raises(ContractError, match=reason), Injection(model, faults) as injection:
            injection.begin_pass(call)
    faults = parse_faults(f"key {ATTENTION}[1,3] of first_token flip 1")

    def without_cache() -> None:
        with Injection(model, faults) as injection:
            injection.begin_pass(call)
            model.module(input_ids=block_of(model).tokens, use_cache=False)

    def without_pass() -> None:
        with Injection(model, faults):
            model.module(input_ids=block_of(model).tokens)

    with pytest.raises(ContractError, match="ran without a cache"):
        without_cache()
    with pytest.raises(ContractError, match="none was announced"):
        without_pass()
    assert hooked(model) == {}


def test_attention_that_never_writes_to_its_cache_is_an_error() -> None:
    model = tiny_loaded("llama")
    model.module.get_submodule(ATTENTION).forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(ContractError, match="never made what it strikes"):
        forced(model, f"key {ATTENTION}[1,3] of first_token flip 1")


def test_what_can_not_be_put_back_stops_nothing_else() -> None:
    model = model_of("llama")
    before, cache = all_words(model), DynamicCache(config=model.module.config)
    faults = parse_faults(
        f"weight {ATTENTION}.q_proj.weight[3,4] replace 9.0 & "
        "value model.layers.0.self_attn[1,3] of first_token add 9.0 from prefill to decode:9 & "
        "value model.layers.1.self_attn[1,3] of first_token add 9.0 from prefill to decode:9"
    )
    block = align([CONTEXTS[0]], [()], model.device)
    injection = Injection(model, faults)

    def emptied() -> None:
        with injection:
            for call in cut(block, frozenset()):
                injection.begin_pass(call)
                model.module(input_ids=block.tokens, past_key_values=cache)
            cache.layers[1].reset()

    with torch.inference_mode(), pytest.raises(AttributeError, match="shape"):
        emptied()
    assert same_words(model, before)
    (struck, _) = (one for one in injection.struck if one.row is not None)
    assert float(cache.layers[0].values[0, 1, 4, 3]) == struck.old_value


def test_a_word_that_can_not_be_written_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def __init__(self, tensor: torch.Tensor) -> None:
            self._words = words(tensor)

        def __getitem__(self, index: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return self._words[index]

        def __setitem__(self, index: tuple[torch.Tensor, ...], value: torch.Tensor) -> None:
            pass

    monkeypatch.setattr("aftershock.inject.cached.words", Stuck)
    for trigger in ("from prefill to decode:9", "at decode:1"):
        with pytest.raises(ContractError, match="did not restore"):
            forced(model_of("llama"), f"key {ATTENTION}[1,3] of prefill:0 add 9.0 {trigger}")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"key {ATTENTION}s[1,3] of first_token flip 1", f"did you mean {ATTENTION}"),
        (f"key {ATTENTION}[2,3] of first_token flip 1", "keeps 2 heads of 8 channels"),
        (f"value {ATTENTION}[1,8] of first_token flip 1", "keeps 2 heads of 8 channels"),
        (f"value {ATTENTION}[1,3] of first_token flip 1 at prefill:0.5", "comes after 'of'"),
        (f"value {ATTENTION}[1,3] of decode:3 flip 1 at decode:2", "over before the token is there"),
        (f"value {ATTENTION}[1,3] of first_token flip 32", "bit 32 is outside float32"),
        (
            f"value {ATTENTION}[1,3] of first_token flip 3 from first_token to decode:3 & "
            f"value {ATTENTION}[1,3] of first_token flip 4 from decode:2",
            "overlaps in time",
        ),
        (
            f"value {ATTENTION}[1,3] of first_token flip 4 from decode:2 & "
            f"value {ATTENTION}[1,3] of first_token flip 3 from first_token to decode:3",
            "overlaps in time",
        ),
    ],
)
def test_what_the_cache_does_not_hold_is_refused(line: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Injection(model_of("llama"), parse_faults(line))


def test_a_share_of_the_prompt_names_a_token_of_each_row() -> None:
    _, struck = forced(model_of("llama"), f"key {ATTENTION}[1,3] of prefill:0.99 replace 2.0")
    # The third row's only context token is its first_token.
    assert {one.row: one.index[0] for one in struck} == {0: 3, 1: 0, 3: 1}
    _, struck = forced(model_of("llama"), f"key {ATTENTION}[1,3] of prefill:2 replace 2.0")
    assert {one.row: one.index[0] for one in struck} == {0: 2}
