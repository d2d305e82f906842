"""Faults in what attention heads make: scores, probabilities, head outputs, and nothing else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from live_models import CONTEXTS, block_of, hooked
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from aftershock.errors import ContractError, InputError
from aftershock.faults import parse_faults
from aftershock.inject import Injection, Struck
from aftershock.models import LoadedModel, align, component_map, generate, teacher_forced
from aftershock.numerics import words
from tiny_models import FAMILIES, tiny_loaded

ATTENTION = "model.layers.0.self_attn"
FIRST_COLUMNS = [5 - len(context) for context in CONTEXTS]


@cache
def eager(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return tiny_loaded(family, dtype, attn_implementation="eager")


def forced(model: LoadedModel, line: str) -> tuple[torch.Tensor, tuple[Struck, ...]]:
    """Logits of a teacher-forced run under the faults, and what they struck."""
    with Injection(model, parse_faults(line)) as injection:
        logits = teacher_forced(model, block_of(model), frozenset(), injection.begin_pass)
    return logits, injection.struck


def clean(model: LoadedModel) -> torch.Tensor:
    return teacher_forced(model, block_of(model), frozenset(), lambda call: None)


def written(model: LoadedModel, line: str) -> tuple[tuple[tuple[int, ...], ...], tuple[Struck, ...]]:
    """Greedy answers under the faults, and what they struck."""
    block = align(CONTEXTS, [()] * 4, model.device)
    with Injection(model, parse_faults(line)) as injection:
        answers = generate(model, block, [6] * 4, [()] * 4, frozenset(), injection.begin_pass)
    return answers.tokens, injection.struck


@contextmanager
def attention_by_hand(model: LoadedModel, part: str, places: list[tuple[int, int, int, int]], value: float) -> Iterator:
    """The model with an attention written here, of which some values in layer 0 are replaced."""
    index = tuple(torch.tensor(places, dtype=torch.int64).reshape(-1, 4).unbind(1))

    def attend(module: Any, query: Any, key: Any, value_states: Any, mask: Any, scaling: float, **_: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value_states = (states.repeat_interleave(groups, dim=1) for states in (key, value_states))
        scores = query @ key.transpose(2, 3)
        if module.layer_idx == 0 and part == "score":
            scores[index] = value
        weights = torch.softmax(scores * scaling + mask, dim=-1, dtype=torch.float32).to(query.dtype)
        if module.layer_idx == 0 and part == "probability":
            weights[index] = value
        output = weights @ value_states
        if module.layer_idx == 0 and part == "head_output":
            output[index] = value
        return output.transpose(1, 2).contiguous(), weights

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", eager_mask)
    before = model.attention
    model.module.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        model.module.set_attn_implementation(before)


BY_KEY = [
    ("[2,0]", "at first_token", [(0, 2, 4, 0), (1, 2, 4, 3), (2, 2, 4, 4), (3, 2, 4, 2)]),
    ("[2,0.99]", "at first_token", [(0, 2, 4, 4), (1, 2, 4, 4), (2, 2, 4, 4), (3, 2, 4, 4)]),
    ("[3,0.5]", "at decode:2", [(0, 3, 6, 3), (2, 3, 6, 5)]),
    ("[0,1]", "at prefill:1", [(0, 0, 1, 1), (3, 0, 3, 3)]),
    # The first token sees none but itself.
    ("[0,1]", "at prefill:0", []),
    # Of the rows that still answer, one has no fourth token yet.
    ("[1,3]", "at decode:1", [(0, 1, 5, 3)]),
]
BY_CHANNEL = [
    ("[2,0]", "at first_token", [(row, 2, 4, 0) for row in range(4)]),
    ("[3,7]", "at decode:2", [(0, 3, 6, 7), (2, 3, 6, 7)]),
    ("[0,1]", "at prefill:1", [(0, 0, 1, 1), (3, 0, 3, 1)]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("part", "site", "trigger", "places"),
    [(part, *case) for part in ("score", "probability") for case in BY_KEY]
    + [("head_output", *case) for case in BY_CHANNEL],
)
def test_a_value_replaced_is_one_replaced_by_hand(
    part: str, site: str, trigger: str, places: list[tuple[int, int, int, int]], dtype: torch.dtype
) -> None:
    """Rows, heads, columns of queries, and columns of keys (or channels) are those worked out here."""
    model = eager("llama", dtype)
    logits, struck = forced(model, f"{part} {ATTENTION}{site} replace 7.0 {trigger}")
    with attention_by_hand(model, part, places, 7.0):
        expected = clean(model)
    assert torch.equal(words(logits), words(expected))
    assert torch.equal(words(logits), words(clean(model))) == (not places)
    assert [(one.row, one.index, one.new_value) for one in struck] == [
        (
            row,
            (query - FIRST_COLUMNS[row], head, inner - (0 if part == "head_output" else FIRST_COLUMNS[row])),
            7.0,
        )
        for row, head, query, inner in places
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_struck_in_every_stage_and_left_as_it_was(family: str) -> None:
    model = eager(family)
    before = clean(model)
    for part in ("score", "probability", "head_output"):
        site = next(site for site in model.components.heads if site.part == part and site.layer == 0)
        for trigger, rows in (("prefill:0.5", {0, 1, 3}), ("first_token", {0, 1, 2, 3}), ("decode:1", {0, 1, 2})):
            line = f"{part} {site.module}[1,{0 if part == 'head_output' else 0.2}] add 40.0 at {trigger}"
            logits, struck = forced(model, line)
            assert {one.row for one in struck} == rows, line
            assert {one.tensor for one in struck} == {f"{site.module}.{part}"}
            assert not torch.equal(words(logits[sorted(rows)]), words(before[sorted(rows)])), line
            untouched = sorted(set(range(4)) - rows)
            assert torch.equal(words(logits[untouched]), words(before[untouched])), line
            # Of the answers that are written, another one may have a token there, or have ended.
            places = {(one.row, one.index) for one in struck}
            while_decoding = {(one.row, one.index) for one in written(model, line)[1]}
            assert while_decoding == places if trigger != "decode:1" else while_decoding & places
    assert hooked(model) == {}
    assert torch.equal(words(clean(model)), words(before))


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_query_sees_the_keys_of_its_window_alone(family: str) -> None:
    model = tiny_loaded(family, attn_implementation="eager", sliding_window=3)
    sliding = next(site for site in model.components.heads if site.part == "score" and site.window == 3)
    before = clean(model)
    # Contexts of 5, 2 and 1 tokens: the queries are tokens 5, 2 and 1; the last row's answer has ended.
    for key, rows in ((0, {1, 2}), (1, {1, 2}), (2, {1}), (3, {0}), (4, {0}), (6, set())):
        line = f"score {sliding.module}[0,{key}] replace 90.0 at decode:1"
        logits, struck = forced(model, line)
        assert {one.row for one in struck} == rows
        assert torch.equal(words(logits), words(before)) == (not rows)
        _, while_decoding = written(model, line)
        assert {one.row for one in while_decoding} >= rows
    share = f"probability {sliding.module}[0,0.0] replace 90.0 at decode:1"
    assert {(one.row, one.index[2]) for one in forced(model, share)[1]} == {(0, 3), (1, 0), (2, 0)}
    assert {(one.row, one.index[2]) for one in written(model, share)[1]} >= {(0, 3), (1, 0), (2, 0)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_heads_outputs_are_what_the_projection_reads_under_any_kernel(family: str) -> None:
    model = tiny_loaded(family)
    assert model.attention == "sdpa"
    assert {site.part for site in model.components.heads} == {"head_output"}
    site = model.components.heads[0]
    reader = model.module.get_submodule(
        next(output.module for output in model.components.outputs if output.component == "o")
    )

    def change(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        inputs[0][:, 4, 2 * site.channels + 3] = 7.0

    hook = reader.register_forward_pre_hook(change)
    expected = clean(model)
    hook.remove()
    logits, struck = forced(model, f"head_output {site.module}[2,3] replace 7.0 at first_token")
    assert torch.equal(words(logits), words(expected))
    assert len(struck) == 4


def test_a_value_that_no_kernel_shows_is_refused() -> None:
    model = tiny_loaded("llama")
    with pytest.raises(InputError, match='load the model with attention = "eager"'):
        Injection(model, parse_faults(f"score {ATTENTION}[0,1] flip 3 at first_token"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"score {ATTENTION}[4,1] flip 3 at first_token", "has 4 heads, numbered from 0"),
        (f"head_output {ATTENTION}[3,8] flip 3 at first_token", "has 4 heads of 8 channels"),
        ("score model.layers.0.self_attention[0,1] flip 3 at first_token", "did you mean model.layers.0.self_attn"),
        (f"probability {ATTENTION}[0,1] flip 3 always", "a probability lives for one pass"),
        (f"head_output {ATTENTION}[0,1] flip 3 at prefill", "prefill has many tokens"),
        (f"score {ATTENTION}[0,1] flip 32 at first_token", "bit 32"),
    ],
)
def test_what_the_model_does_not_have_is_refused(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Injection(eager("llama"), parse_faults(line))


def test_an_attention_that_makes_no_products_is_an_error() -> None:
    """Armed means fired: the model was changed behind the map's back."""
    model = tiny_loaded("llama", attn_implementation="eager")
    model.module.set_attn_implementation("sdpa")
    with pytest.raises(ContractError, match="never made what it strikes"):
        forced(model, f"score {ATTENTION}[0,1] flip 3 at first_token")
    assert hooked(model) == {}


def test_an_attention_that_multiplies_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_loaded("llama", attn_implementation="eager")
    before = torch.matmul

    def scores_otherwise(query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        # The product with the keys by another function, as GPT-2 has it with `reorder_and_upcast_attn`.
        return torch.bmm(query.flatten(0, 1), other.flatten(0, 1)).view(*query.shape[:-1], other.shape[-1])

    modeling = sys.modules[type(model.module).__module__]

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        key, value = (modeling.repeat_kv(states, module.num_key_value_groups) for states in (key, value))
        weights = torch.softmax(scores_otherwise(query, key.transpose(2, 3)) * scaling + mask, dim=-1)
        return before(weights, value).transpose(1, 2).contiguous(), weights

    monkeypatch.setattr(modeling, "eager_attention_forward", attend)
    for part in ("score", "probability"):
        with pytest.raises(ContractError, match=r"1 of the two products|never made what it strikes"):
            forced(model, f"{part} {ATTENTION}[0,1] replace 3.0 at first_token")
    assert hooked(model) == {}


def test_an_attention_in_fp32_shows_no_scores() -> None:
    model = tiny_loaded("gpt2", attn_implementation="eager", reorder_and_upcast_attn=True)
    assert {site.part for site in model.components.heads} == {"head_output"}


def test_the_watch_ends_with_a_model_that_fails() -> None:
    model = tiny_loaded("llama", attn_implementation="eager")

    def fail(*_: object) -> None:
        raise IndexError("out of range")

    hook = model.module.get_submodule(f"{ATTENTION}.v_proj").register_forward_hook(fail)
    with pytest.raises(IndexError, match="out of range"):
        forced(model, f"score {ATTENTION}[0,1] flip 3 at first_token")
    hook.remove()
    assert torch.overrides._get_current_function_mode() is None
    assert hooked(model) == {}


def test_the_map_lists_them_where_they_are_made() -> None:
    module = eager("gemma3").module
    heads = component_map(module).heads
    assert [(site.part, site.component, site.layer, site.shape, site.window) for site in heads] == [
        ("score", "qk", 0, (4, 1), 16),
        ("probability", "softmax", 0, (4, 1), 16),
        ("head_output", "sv", 0, (4, 16), 16),
        ("score", "qk", 1, (4, 1), None),
        ("probability", "softmax", 1, (4, 1), None),
        ("head_output", "sv", 1, (4, 16), None),
    ]
