"""Selections: each rule of the `[faults]` table, and the population that is left."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aftershock.errors import InputError
from aftershock.faults import Population, Selection, check_per_pass, parse_layers, select
from aftershock.models import ComponentMap, HeadSite
from aftershock.numerics import format_of
from tiny_models import tiny_loaded


@pytest.fixture(scope="module")
def llama() -> ComponentMap:
    return tiny_loaded("llama").components


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"components": ["qq"]}, "unknown component 'qq'"),
        ({"modules": "("}, "not a regular expression"),
        ({"bits": [3], "bit_classes": ["sign"]}, "not both"),
        ({"bit_classes": ["fraction"]}, "bit_classes"),
        ({"corruption": "replace"}, "either value or uniform"),
        ({"corruption": "add", "value": 1.0, "uniform": [0, 1]}, "either value or uniform"),
        ({"corruption": "flip", "value": 1.0}, "either value or uniform"),
        ({"corruption": "flip", "uniform": [0, 1]}, "either value or uniform"),
        ({"corruption": "replace", "value": 1.0, "bits": [3]}, "leave the bits out"),
        ({"corruption": "add", "value": 1.0, "bit_classes": ["sign"]}, "leave the bits out"),
        ({"corruption": "add", "value": 1.0, "bits_per_word": 2}, "leave the bits out"),
        ({"rate": 0.1, "draw": "uniform"}, "rate and per_pass scatter faults over one kind"),
        ({"rate": 0.1, "sites": ["weight"]}, "rate and per_pass need"),
        ({"rate": 0.1, "sites": ["weight"], "draw": "uniform", "count": 2}, "rate and per_pass need"),
        ({"rate": 0.1, "sites": ["weight"], "draw": "uniform", "bits_per_word": 2}, "rate and per_pass need"),
        ({"rate": 0.0, "sites": ["weight"], "draw": "uniform"}, "rate"),
        ({"rate": 1.0, "sites": ["weight"], "draw": "uniform"}, "rate"),
        ({"tokens": [0.5, 0.5]}, "shares of the prompt"),
        ({"tokens": [-0.1, 0.5]}, "shares of the prompt"),
        ({"tokens": [0.1, 1.5]}, "shares of the prompt"),
        ({"decode_steps": [0, 4]}, "counted from 1"),
        ({"decode_steps": [5, 4]}, "counted from 1"),
        ({"weight_trigger": "whenever"}, "can't be read"),
        ({"weight_trigger": "at prefill:0.5"}, "a weight has no token"),
        ({"count": 0}, "count"),
        ({"bits_per_word": 0}, "bits_per_word"),
        ({"sites": []}, "sites"),
        ({"stages": []}, "stages"),
        ({"stages": ["later"]}, "stages"),
        ({"draw": "by_layer"}, "draw"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_each_rule_is_held(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Selection(**settings)


def test_bits_come_from_positions_or_classes_or_are_all() -> None:
    bf16 = format_of("bfloat16")
    assert Selection().bit_positions(bf16) == tuple(range(16))
    assert Selection(bits=(9, 3, 9)).bit_positions(bf16) == (3, 9)
    assert Selection(bit_classes=("sign", "exponent")).bit_positions(bf16) == tuple(range(7, 16))
    assert Selection(bit_classes=("mantissa",)).bit_positions(format_of("float16")) == tuple(range(10))
    with pytest.raises(InputError, match="bit 16 is outside bfloat16"):
        Selection(bits=(3, 16)).bit_positions(bf16)


def test_a_population_keeps_what_every_key_allows(llama: ComponentMap) -> None:
    left = select(Selection(components=("q", "norm"), layers="1", modules="self_attn|input"), llama)
    assert [site.name for site in left.parameters] == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.input_layernorm.weight",
    ]
    assert {site.module for site in left.outputs} == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.input_layernorm",
    }


def test_an_open_selection_is_the_whole_map(llama: ComponentMap) -> None:
    left = select(Selection(), llama)
    assert left.parameters == llama.parameters
    assert left.outputs == llama.outputs


def test_layers_leave_out_what_lies_outside_them(llama: ComponentMap) -> None:
    left = select(Selection(layers="0-1"), llama)
    assert {site.layer for site in left.parameters} == {0, 1}


def test_only_the_kinds_of_site_asked_for_are_left(llama: ComponentMap) -> None:
    assert select(Selection(sites=("weight",)), llama).outputs == ()
    assert select(Selection(sites=("activation",)), llama).parameters == ()
    values = select(Selection(sites=("value",), layers="1"), llama)
    assert [(site.module, site.part, site.heads, site.channels) for site in values.cached] == [
        ("model.layers.1.self_attn", "value", 2, 8)
    ]
    assert (values.parameters, values.outputs) == ((), ())


def test_an_empty_selection_says_which_keys_to_widen(llama: ComponentMap) -> None:
    with pytest.raises(InputError, match="leaves no weight of LlamaForCausalLM"):
        select(Selection(components=("router",)), llama)
    with pytest.raises(InputError, match="leaves no weight"):
        select(Selection(modules="no such module"), llama)
    # A tied tensor is a weight of its own component, and two outputs.
    with pytest.raises(InputError, match="leaves no activation"):
        select(Selection(components=("embedding+lm_head",)), llama)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("3", {3}),
        ("0-3,28", {0, 1, 2, 3, 28}),
        (" 5,5 ", {5}),
        ("last 4", {26, 27, 28, 29}),
        ("last 30", set(range(30))),
        ("group 1/8", {0, 1, 2}),
        ("group 2/8", {3, 4, 5, 6}),
        ("group 1/1", set(range(30))),
    ],
)
def test_layers_in_words(text: str, layers: set[int]) -> None:
    assert parse_layers(text, 30) == layers


def test_no_layers_given_means_everything() -> None:
    assert parse_layers("", 30) is None
    assert parse_layers("  ", 30) is None


@given(st.integers(1, 80), st.data())
def test_groups_share_the_layers_out_evenly(layers: int, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, layers))
    parts = [parse_layers(f"group {number + 1}/{groups}", layers) for number in range(groups)]
    assert sorted(layer for part in parts for layer in part or ()) == list(range(layers))
    sizes = [len(part or ()) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "corruption", [{"corruption": "add", "value": 1.0}, {"bits": (3, 4)}, {"bit_classes": ("sign",)}, {}]
)
def test_more_strikes_a_pass_than_there_are_places_are_refused(llama: ComponentMap, corruption: dict) -> None:
    number_format = format_of("float32")

    def check(amount: int, **moment: object) -> None:
        keys = {"sites": ("activation",), "components": ("k", "up"), "draw": "uniform", "per_pass": amount}
        selection = Selection(**keys, **corruption, **moment)
        check_per_pass(selection, select(selection, llama), number_format, 9)

    channels = next(site.numel for site in llama.outputs if site.component == "k")
    bits = {"add": 1}.get(corruption.get("corruption"), len(corruption.get("bits", ())) or (1 if corruption else 32))
    check(channels * bits)
    with pytest.raises(InputError, match=f"k has {channels * bits} places in the first later pass"):
        check(channels * bits + 1)
    # Prefill has the places of all its eight tokens.
    for moment in ({"activation_trigger": "at prefill"}, {"stages": ("prefill",)}):
        check(8 * channels * bits, **moment)
        with pytest.raises(InputError, match=f"k has {8 * channels * bits} places in the prefill pass"):
            check(8 * channels * bits + 1, **moment)


@pytest.mark.parametrize(("trigger", "keys"), [("from first_token", 9), ("from decode:3", 12), ("always", 9)])
def test_sums_of_scores_have_a_place_for_each_key_that_the_first_pass_sees(trigger: str, keys: int) -> None:
    population = Population(accumulators=(HeadSite("attention", "qk_accumulator", 0, 4, 8, None),))

    def check(amount: int) -> None:
        kind = {"sites": ("accumulator",), "draw": "uniform", "bits": (30,), "activation_trigger": trigger}
        check_per_pass(Selection(**kind, per_pass=amount), population, format_of("float32"), 9)

    check(4 * keys)
    with pytest.raises(InputError, match=f"qk has {4 * keys} places"):
        check(4 * keys + 1)


@pytest.mark.parametrize(
    "text",
    [
        "30",
        "0-30",
        "28,99999999999999",
        "0-99999999999999",
        "last 0",
        "last 31",
        "last 99999999999999",
        "3-1",
        "0-3,5-4",
        "group 0/8",
        "group 9/8",
        "group 1/31",
        "first 4",
        "-1",
        "1,",
        "1.5",
        "a",
    ],
)
def test_layers_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="layers"):
        parse_layers(text, 30)
