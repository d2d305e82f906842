"""Holding faults against a model: what is missing is refused, what is there gets its labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.faults import (
    ActivationSite,
    Entry,
    Fault,
    Flip,
    Labels,
    Trigger,
    WeightSite,
    check,
    column_of,
    labels,
    output_site,
    parameter_site,
    parse_fault,
    parse_faults,
    splits,
)
from aftershock.models import FIRST_TOKEN, PREFILL, ComponentMap, align, decode
from aftershock.numerics import format_of
from tiny_models import tiny_loaded

BF16 = format_of("bfloat16")


@pytest.fixture(scope="module")
def llama() -> ComponentMap:
    return tiny_loaded("llama").components


@pytest.fixture(scope="module")
def phi3() -> ComponentMap:
    return tiny_loaded("phi3").components


@pytest.fixture(scope="module")
def neox() -> ComponentMap:
    return tiny_loaded("gpt_neox").components


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("weight model.norm.wieght[3] flip 3", "did you mean model.norm.weight"),
        ("weight xyzzy[3] flip 3", "docs/models.md"),
        ("weight model.norm.weight[32] flip 3", r"has shape \[32\], so index \[32\] is outside"),
        ("weight model.norm.weight[0,0] flip 3", "is outside it"),
        ("weight model.embed_tokens.weight[3] flip 3", "is outside it"),
        ("weight model.norm.weight[3] flip 3,16", "bit 16 is outside bfloat16"),
        ("weight model.norm.weight[3] stuck-at-1 31", "bit 31 is outside bfloat16"),
        ("weight model.norm.weight[3] flip 3 at prefill:0.5", "a weight has no token"),
        (
            "activation model.layers.0.mlp.dwn_proj[3] flip 3 at first_token",
            "did you mean model.layers.0.mlp.down_p",
        ),
        ("activation model.norm[32] flip 3 at first_token", "has 32 channels"),
        ("activation model.norm[3] flip 16 at first_token", "bit 16 is outside bfloat16"),
        ("activation lm_head[3] flip 3 at prefill", "the output of lm_head is computed for answer tokens only"),
        ("head_output model.layers.0.self_attn[0,3] flip 3", "give it a transient trigger"),
        ("head_output model.layers.0.self_attn[0,3] flip 3 at prefill", "prefill has many tokens"),
        ("activation lm_head[3] flip 3 at prefill:0.5", "the output of lm_head is computed for answer tokens only"),
    ],
)
def test_what_the_model_does_not_have_is_refused(line: str, reason: str, llama: ComponentMap) -> None:
    with pytest.raises(InputError, match=reason):
        check(parse_fault(line), llama, BF16)


def test_negative_places_are_refused(llama: ComponentMap) -> None:
    with pytest.raises(InputError, match="is outside it"):
        check(Fault(WeightSite("model.norm.weight", (-1,)), Flip((3,))), llama, BF16)
    with pytest.raises(InputError, match="channels"):
        check(Fault(ActivationSite("model.norm", -1), Flip((3,)), Trigger(1, 2)), llama, BF16)


@pytest.mark.parametrize(
    "line",
    [
        "weight model.norm.weight[31] flip 15",
        "weight model.embed_tokens.weight[98,31] stuck-at-0 0,15 from decode:2 to decode:9",
        "weight model.layers.1.mlp.up_proj.weight[47,31] replace nan at prefill",
        "activation model.norm[31] add 1.5 at prefill:0",
        "activation lm_head[98] flip 3 at first_token",
    ],
)
def test_what_the_model_has_is_accepted(line: str, llama: ComponentMap) -> None:
    check(parse_fault(line), llama, BF16)


@pytest.mark.parametrize(("row", "component"), [(0, "q"), (31, "q"), (32, "k"), (47, "k"), (48, "v"), (63, "v")])
def test_rows_of_a_fused_projection_have_their_own_component(row: int, component: str, phi3: ComponentMap) -> None:
    weight = parse_fault(f"weight model.layers.1.self_attn.qkv_proj.weight[{row},5] flip 3")
    assert (parameter_site(weight, phi3).component, parameter_site(weight, phi3).layer) == (component, 1)
    output = parse_fault(f"activation model.layers.1.self_attn.qkv_proj[{row}] flip 3 at first_token")
    assert output_site(output, phi3).component == component


@pytest.mark.parametrize(("row", "component"), [(0, "q"), (7, "q"), (8, "k"), (16, "v"), (24, "q"), (95, "v")])
def test_rows_interleaved_head_by_head(row: int, component: str, neox: ComponentMap) -> None:
    for name in ("weight[{},3]", "bias[{}]"):
        line = f"weight gpt_neox.layers.0.attention.query_key_value.{name.format(row)} flip 3"
        assert parameter_site(parse_fault(line), neox).component == component
    line = f"activation gpt_neox.layers.0.attention.query_key_value[{row}] flip 3 at first_token"
    assert output_site(parse_fault(line), neox).component == component


def test_labels_of_one_fault(llama: ComponentMap) -> None:
    weight = parse_faults("weight model.layers.1.mlp.up_proj.weight[3,4] flip 9,13 from decode:2")
    assert labels(weight, llama, BF16) == Labels("weight", "up", 1, (9, 13), "exponent", "persistent")
    tied = parse_faults("weight model.embed_tokens.weight[3,4] flip 3,9 at first_token")
    assert labels(tied, llama, BF16) == Labels("weight", "embedding+lm_head", None, (3, 9), "several", "first_token")
    value = parse_faults("activation lm_head[3] add 2.0 at decode:4")
    assert labels(value, llama, BF16) == Labels("activation", "lm_head", None, (), "value", "decode")


def test_labels_of_a_set_are_kept_where_all_agree(llama: ComponentMap) -> None:
    line = (
        "weight model.layers.1.mlp.up_proj.weight[3,4] flip 15 at first_token & "
        "weight model.layers.1.mlp.down_proj.weight[3,4] flip 3 at first_token"
    )
    assert labels(parse_faults(line), llama, BF16) == Labels("weight", "several", 1, (), "several", "first_token")


@pytest.mark.parametrize(("moment", "stage"), [("prefill:0.5", "prefill"), ("decode:4", "decode")])
def test_labels_of_a_word_of_the_cache(moment: str, stage: str, llama: ComponentMap) -> None:
    for trigger in ("always", "from decode:5", "at decode:4"):
        cached = parse_faults(f"key model.layers.1.self_attn[1,3] of {moment} flip 15 {trigger}")
        assert labels(cached, llama, BF16) == Labels("key", "kv", 1, (15,), "sign", stage)


@pytest.mark.parametrize(
    ("line", "cuts"),
    [
        ("of prefill:0.5 flip 1", set()),
        ("of decode:3 flip 1 from decode:2", set()),
        ("of prefill:0.5 flip 1 from first_token", {FIRST_TOKEN}),
        ("of first_token flip 1 from decode:2 to decode:4", {decode(2), decode(4)}),
        ("of first_token flip 1 at first_token", {decode(1)}),
        ("of decode:3 flip 1 from decode:1 to decode:5", {decode(5)}),
    ],
)
def test_a_word_of_the_cache_cuts_where_its_readers_change(line: str, cuts: set[int]) -> None:
    assert splits(parse_faults(f"value a[0,1] {line}")) == cuts


def test_only_weight_faults_cut_a_run() -> None:
    line = (
        "weight a[0] flip 1 from first_token to decode:3 & weight b[0] flip 1 & "
        "weight c[0] flip 1 at prefill & activation d[0] flip 1 at decode:7"
    )
    assert splits(parse_faults(line)) == {FIRST_TOKEN, decode(3)}


@given(st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_a_share_of_the_prompt_is_one_of_its_prefill_tokens(length: int, share: float) -> None:
    token = Entry(PREFILL, share).place(length)
    assert token is None if length == 1 else token in range(length - 1)


@given(st.integers(1, 20), st.integers(0, 30))
def test_a_token_beyond_the_prompt_is_nowhere(length: int, token: int) -> None:
    assert Entry(PREFILL, token).place(length) == (token if token < length - 1 else None)


def test_every_share_of_the_prompt_is_equally_wide() -> None:
    struck = [Entry(PREFILL, number / 700).place(8) for number in range(700)]
    assert [struck.count(token) for token in range(7)] == [100] * 7


def test_later_passes_have_one_token_each() -> None:
    assert Entry(FIRST_TOKEN).place(5) == 4
    assert Entry(decode(3)).place(5) == 7


def test_a_token_has_a_column_in_each_row() -> None:
    block = align([(5, 6, 7), (8, 9), (10,)], [(20,), (), ()], torch.device("cpu"))
    for entry, columns in (
        (Entry(PREFILL, 1), [1, None, None]),
        (Entry(PREFILL, 0.5), [1, 1, None]),
        (Entry(FIRST_TOKEN), [2, 2, 2]),
        (Entry(decode(2)), [4, 4, 4]),
    ):
        assert [column_of(entry, block, row) for row in range(3)] == columns
    activation, word = (
        parse_fault(f"{site} flip 1 at decode:2") for site in ("activation m[1]", "key m[1,3] of prefill:0.5")
    )
    assert (activation.entry, word.entry) == (Entry(decode(2)), Entry(PREFILL, 0.5))
