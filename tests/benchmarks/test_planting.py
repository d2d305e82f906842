"""Errors in what a model computes show first where they are planted, and change no weight."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.plants.building import asked, planted_target
from benchmarks.plants.cases import Plant, Prompts
from benchmarks.plants.operations import IN_MODELS, IN_WEIGHTS
from benchmarks.plants.running import logits_of
from benchmarks.plants.targets import Target
from benchmarks.tiny_serving import tiny_loaded

LAYER = 2


def target_of(family: str, *lengths: int, dtype: torch.dtype = torch.float32) -> Target:
    return asked(Target(tiny_loaded(family, dtype), ()), Prompts(lengths=lengths or (9, 40, 40)))


@contextmanager
def outputs(module: Any) -> Iterator[dict[str, torch.Tensor]]:
    """What every module returns (the first tensor), by name, while open."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def after(_: Any, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                seen[name] = first.clone()

        return after

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if name and "rotary" not in name and "act_fn" not in name:
                hooks.callback(part.register_forward_hook(keep(name)).remove)
        yield seen


def seen_in(target: Target) -> dict[str, torch.Tensor]:
    one = replace(target, prompts=target.prompts[-1:])
    with outputs(one.module) as seen:
        logits_of(one)
    return seen


# What is planted in layer 2, the module whose output is the first to change, and the family.
PLANTED: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen3", "mlp.up_proj", {"operation": "output", "point": "up", "change": "scale", "factor": 2.0}),
    ("qwen3", "self_attn.q_proj", {"operation": "output", "point": "q", "change": "shift", "by": 0.5}),
    ("phi3", "self_attn.qkv_proj", {"operation": "output", "point": "v", "change": "ramp", "most": 0.5}),
    ("llama", "mlp.gate_proj", {"operation": "output", "point": "gate", "change": "clip", "limit": 0.1}),
    ("llama", "self_attn.o_proj", {"operation": "output", "point": "o", "change": "round_to", "dtype": "float16"}),
    ("llama", "", {"operation": "output", "point": "residual", "change": "round_to_grid", "levels": 127}),
    ("llama", "mlp", {"operation": "output", "point": "mlp", "change": "zero_channels", "first": 1, "count": 2}),
    ("llama", "mlp", {"operation": "output", "point": "mlp", "change": "spoil_last"}),
    (
        "llama",
        "self_attn.v_proj",
        {"operation": "output", "point": "v", "change": "negate_alternate_heads", "channels": 32},
    ),
    ("llama", "mlp.up_proj", {"operation": "output", "point": "up", "change": "sort_channels"}),
    ("llama", "mlp.up_proj", {"operation": "output", "point": "up", "change": "reverse_channels", "channels": 8}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "saturate_largest", "share": 0.5}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "ripple", "amplitude": 0.1}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "rotate_hadamard", "channels": 32}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "leak_neighbour", "share": 0.1}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "squash", "limit": 2.0}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "swap_halves"}),
    ("llama", "mlp.down_proj", {"operation": "output", "point": "down", "change": "centre"}),
    ("llama", "mlp.up_proj", {"operation": "input", "point": "up", "change": "round_to", "dtype": "float8_e4m3fn"}),
    ("llama", "mlp.down_proj", {"operation": "sum_in_parts", "point": "down", "parts": 4, "dtype": "bfloat16"}),
    ("qwen3", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "other_eps", "value": 0.1}),
    (
        "gemma3",
        "pre_feedforward_layernorm",
        {"operation": "norm", "point": "mlp_norm", "norm": "offset_gain", "by": -1.0},
    ),
    ("llama", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "without_gain"}),
    ("llama", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "gain_twice"}),
    ("llama", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "centred"}),
    ("llama", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "over_part", "share": 0.5}),
    ("llama", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "mean_magnitude"}),
    ("llama", "input_layernorm", {"operation": "norm", "point": "attn_norm", "norm": "previous_token", "axis": 1}),
    ("qwen3", "self_attn.k_norm", {"operation": "norm", "point": "k_norm", "norm": "across_heads", "axis": -2}),
    ("qwen3", "self_attn.k_norm", {"operation": "norm", "point": "k_norm", "norm": "skipped"}),
    *[
        ("llama", "mlp.down_proj", {"operation": "activation", "name": name})
        for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "hard_silu")
    ],
    ("llama", "mlp.down_proj", {"operation": "product", "product": "swapped"}),
    ("llama", "mlp.down_proj", {"operation": "product", "product": "clamped", "limit": 1.0}),
    ("llama", "mlp.down_proj", {"operation": "product", "product": "after_product"}),
    ("llama", "mlp.down_proj", {"operation": "product", "product": "changed", "change": "scale", "factor": 2.0}),
    *[
        ("qwen2-moe", "mlp.experts", {"operation": "routing", "route": route, **parameters})
        for route, parameters in (
            ("top_then_softmax", {}),
            ("scaled", {"factor": 2.0}),
            ("other_count", {"chosen": 1}),
            ("by_sigmoid", {}),
            ("weights_reversed", {}),
            ("full_experts", {"capacity": 4}),
            ("negative_to_first", {}),
        )
    ],
    ("mixtral", "mlp.experts", {"operation": "routing", "route": "softmax_then_top"}),
    *[
        ("gemma3", first, {"operation": "join", "half": half, "join": join, **parameters})
        for half, first, joins in (
            ("mlp", "", (("scaled", {"factor": 0.5}), ("residual_lost", {}), ("branch_lost", {}))),
            ("mlp", "", (("added_twice", {"first": 20}), ("added_to_normed", {}), ("previous_token", {}))),
            ("mlp", "post_feedforward_layernorm", (("sum_normed", {}),)),
            ("attention", "pre_feedforward_layernorm", (("scaled", {"factor": 0.5}), ("residual_lost", {}))),
        )
        for join, parameters in joins
    ],
    ("llama", "post_attention_layernorm", {"operation": "parallel"}),
    *[
        (family, "self_attn.o_proj", {"operation": "sight", "sight": sight, **parameters})
        for family, sight, parameters in (
            ("llama", "rescale", {"factor": 1.1}),
            ("llama", "cap", {"softcap": 2.0}),
            ("gemma2", "uncap", {}),
            ("llama", "window", {"size": 8}),
            ("mistral", "no_window", {}),
            ("mistral", "chunked", {"size": 16}),
            ("llama", "look_ahead", {"tokens": 1}),
            ("llama", "blind_to_self", {}),
            ("llama", "lose", {"first": 4, "count": 4}),
            ("llama", "hold_other", {"first": 4, "count": 4, "by": 8}),
            ("llama", "scale_cache", {"key": 1.0, "value": 1.5}),
            ("llama", "round_cache", {"dtype": "float8_e5m2"}),
            ("llama", "tile_heads", {}),
            ("llama", "lose_value_heads", {"first": 1}),
            ("llama", "first_head_for_all", {}),
            ("llama", "values_of_next_head", {}),
            ("llama", "values_one_late", {}),
        )
    ],
    *[
        ("llama", "self_attn.o_proj", {"operation": "weighing", "weighing": weighing, **parameters})
        for weighing, parameters in (
            ("sink", {"logit": 1.0}),
            ("base_two", {}),
            ("dropped", {"every": 10}),
            ("largest_only", {"count": 4}),
            ("blocks_not_rescaled", {"block": 16}),
            ("biased_by_distance", {"slope": 0.05}),
            ("alternate_sign", {}),
            ("eight_bits", {}),
        )
    ],
    *[
        ("qwen3", "self_attn.o_proj", {"operation": "turn", "turn": turn, **parameters})
        for turn, parameters in (
            ("other_theta", {"theta": 5e5}),
            ("squeezed", {"theta": 1e4, "factor": 2.0}),
            ("no_turn", {}),
            ("backwards", {}),
            ("enlarged", {"factor": 1.1}),
            ("later", {"theta": 1e4, "by": 3, "first": 20}),
            ("starting_over", {"theta": 1e4, "every": 16}),
            ("coarse", {"theta": 1e4, "dtype": "bfloat16"}),
        )
    ],
    ("llama", "self_attn.o_proj", {"operation": "rotation", "rotation": "interleaved"}),
    ("gemma3", "self_attn.o_proj", {"operation": "rotation", "rotation": "first_channels", "theta": 1e4, "share": 0.5}),
    ("mixtral", "self_attn.o_proj", {"operation": "rotation", "rotation": "queries_alone"}),
]


@pytest.mark.parametrize(
    ("family", "first", "plant"),
    PLANTED,
    ids=[f"{family}-{'-'.join(map(str, p.values()))}" for family, _, p in PLANTED],
)
def test_an_error_shows_first_where_it_was_planted_and_no_weight_changes(
    family: str, first: str, plant: dict[str, Any]
) -> None:
    clean, suspect = target_of(family), target_of(family)
    planted_target(suspect, [Plant(**plant, layers=[LAYER])])
    right, wrong = seen_in(clean), seen_in(suspect)
    assert right.keys() == wrong.keys()
    assert all(map(torch.equal, clean.module.parameters(), suspect.module.parameters()))
    changed = [name for name in right if not torch.equal(right[name], wrong[name])]
    assert changed[0] == f"model.layers.{LAYER}.{first}".rstrip(".")
    assert "lm_head" in changed


def test_every_operation_on_a_model_is_tried_with_every_variant() -> None:
    harmless = {("norm", "root_mean_square"), ("activation", "silu"), ("product", "multiplied"), ("join", "added")}
    harmless |= {("kernel", None), ("choice", None)}
    tried = {(plant["operation"], plant.get(IN_MODELS[plant["operation"]].choice or "")) for _, _, plant in PLANTED}
    wanted = {
        (name, variant)
        for name, operation in IN_MODELS.items()
        if name not in (*IN_WEIGHTS, "input")  # `input` has the variants of `output`
        for variant in (operation.variants or [None])
    }
    assert wanted - harmless <= tried


HARMLESS = [
    {"operation": "norm", "point": "mlp_norm", "norm": "root_mean_square"},
    {"operation": "activation", "name": "silu"},
    {"operation": "product", "product": "multiplied"},
    {"operation": "join", "half": "mlp", "join": "added"},
    {"operation": "join", "half": "attention", "join": "scaled", "factor": 1.0},
    {"operation": "sight", "sight": "rescale", "factor": 1.0},
    {"operation": "sight", "sight": "hold_other", "first": 0, "count": 64, "by": 1, "first_query": 64},
    {"operation": "turn", "turn": "enlarged", "factor": 1.0},
    {"operation": "rotation", "rotation": "first_channels", "theta": 10000.0, "share": 1.0},
    {"operation": "output", "point": "q", "change": "scale", "factor": 1.0},
]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
@pytest.mark.parametrize("plant", HARMLESS, ids=[str(list(plant.values())[:3]) for plant in HARMLESS])
def test_the_right_computation_planted_gives_the_same_words(family: str, plant: dict[str, Any]) -> None:
    if plant["operation"] in ("activation", "product") and family == "mixtral":
        pytest.skip("the experts' activation is no module of the MLP")
    dtype = torch.bfloat16
    suspect = planted_target(target_of(family, dtype=dtype), [Plant(**plant)])
    assert all(map(torch.equal, logits_of(target_of(family, dtype=dtype)), logits_of(suspect)))


def test_a_planted_model_leaves_others_alone() -> None:
    before = logits_of(target_of("llama"))
    planted_target(target_of("llama"), [Plant(operation="rotation", rotation="interleaved")])
    planted_target(target_of("llama"), [Plant(operation="weighing", weighing="base_two")])
    assert all(map(torch.equal, before, logits_of(target_of("llama"))))


def test_late_queries_alone_see_a_cache_that_is_read_late() -> None:
    plant = Plant(operation="sight", sight="hold_other", first=0, count=8, by=8, first_query=20)
    right, wrong = logits_of(target_of("llama"))[1], logits_of(planted_target(target_of("llama"), [plant]))[1]
    assert torch.equal(right[:20], wrong[:20])
    assert not any(torch.equal(one, other) for one, other in zip(right[20:], wrong[20:], strict=True))
