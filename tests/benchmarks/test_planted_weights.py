"""Errors in stored tensors and configurations change these alone."""

from typing import Any

import pytest
import torch
from benchmarks.plants.building import asked, planted_target
from benchmarks.plants.cases import Plant, Prompts
from benchmarks.plants.operations import IN_MODELS, merged
from benchmarks.plants.running import logits_of
from benchmarks.plants.targets import Target
from benchmarks.tiny_serving import tiny_loaded
from hypothesis import given
from hypothesis import strategies as st

LAYER = 2


def target_of(family: str) -> Target:
    return asked(Target(tiny_loaded(family), ()), Prompts(lengths=(9, 40, 40)))


EDITED = [
    ("scale", {"factor": 2.0}),
    ("scale_rows", {"factor": 2.0, "first": 3, "count": 2}),
    ("fill", {"value": 1.0}),
    ("add", {"by": 1.0}),
    ("zero_rows", {"first": 3, "count": 2}),
    ("repeat_rows", {"first": 4, "count": 2}),
    ("transpose", {}),
    ("roll_rows", {"by": 1}),
    ("to_interleaved", {"heads": 4}),
    ("to_halves", {"heads": 4}),
    ("order_heads", {"heads": 4, "order": [1, 0, 2, 3]}),
    ("interleave_shards", {"shards": 2}),
    ("repeat_shard", {"shards": 2}),
    ("shift_blocks", {"levels": 15, "block": 32}),
    ("swap_block_scales", {"block": 32}),
    ("coarsen", {"levels": 7, "block": 32}),
    ("stretch_inputs", {"most": 1.5}),
]


@pytest.mark.parametrize(("edit", "parameters"), EDITED, ids=[edit for edit, _ in EDITED])
def test_an_edit_changes_its_tensor_alone(edit: str, parameters: dict[str, Any]) -> None:
    name = f"model.layers.{LAYER}.self_attn.o_proj.weight"  # 128 x 128, in phi3
    clean, suspect = target_of("phi3"), target_of("phi3")
    plant = {
        "operation": "weight",
        "tensor": name.replace("2", "{layer}"),
        "edit": edit,
        "layers": [LAYER],
        **parameters,
    }
    planted_target(suspect, [Plant(**plant)])
    right, wrong = clean.module.state_dict(), suspect.module.state_dict()
    assert [key for key in right if not torch.equal(right[key], wrong[key])] == [name]


def test_every_edit_is_tried() -> None:
    assert {edit for edit, _ in EDITED} == set(IN_MODELS["weight"].variants)


def test_permutations_of_rows_undo_each_other() -> None:
    name = "model.layers.{layer}.self_attn.q_proj.weight"
    there, back = (
        Plant(operation="weight", tensor=name, edit=edit, heads=4) for edit in ("to_interleaved", "to_halves")
    )
    once, twice = planted_target(target_of("llama"), [there]), planted_target(target_of("llama"), [there, back])
    clean = target_of("llama").module.state_dict()
    assert any(not torch.equal(clean[key], words) for key, words in once.module.state_dict().items())
    assert all(torch.equal(clean[key], words) for key, words in twice.module.state_dict().items())


def test_parts_of_tensors_are_swapped_and_copied() -> None:
    prefix = "model.layers.{layer}.mlp."
    plants = [
        Plant(operation="swap_weights", tensor=prefix + "gate_proj.weight", with_tensor=prefix + "up_proj.weight"),
        Plant(operation="swap_layers", tensor=prefix + "down_proj.weight", layers=[1, 3]),
        Plant(operation="swap_rows", tensor="lm_head.weight", rows=[0, 4], with_rows=[4, 8], layers="all"),
    ]
    right, wrong = (one.module.state_dict() for one in (target_of("llama"), planted_target(target_of("llama"), plants)))
    assert torch.equal(right["model.layers.4.mlp.gate_proj.weight"], wrong["model.layers.4.mlp.up_proj.weight"])
    assert torch.equal(right["model.layers.1.mlp.down_proj.weight"], wrong["model.layers.3.mlp.down_proj.weight"])
    assert torch.equal(right["model.layers.2.mlp.down_proj.weight"], wrong["model.layers.2.mlp.down_proj.weight"])
    assert torch.equal(right["lm_head.weight"][:4], wrong["lm_head.weight"][4:8])
    tied = Plant(operation="copy_weight", tensor="lm_head.weight", source="model.embed_tokens.weight")
    words = planted_target(target_of("llama"), [tied]).module.state_dict()
    assert torch.equal(words["lm_head.weight"], words["model.embed_tokens.weight"])


def test_one_expert_or_some_rows_are_edited_alone() -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    plant = Plant(operation="weight", tensor=name, edit="fill", value=0.0, expert=2, rows=[1, 3])
    right = target_of("mixtral").module.get_parameter(name)
    wrong = planted_target(target_of("mixtral"), [plant]).module.get_parameter(name)
    assert (right != wrong).nonzero()[:, :2].unique(dim=0).tolist() == [[2, 1], [2, 2]]


def test_a_configuration_is_changed_before_the_model_is_built() -> None:
    plant = Plant(operation="config", settings={"rope_parameters": {"sliding_attention": {"rope_theta": 777.0}}})
    module: Any = planted_target(target_of("gemma3"), [plant]).module
    assert module.config.rope_parameters["sliding_attention"]["rope_theta"] == 777.0
    assert module.config.rope_parameters["full_attention"]["rope_theta"] != 777.0
    assert all(map(torch.equal, target_of("gemma3").module.parameters(), module.parameters()))
    assert not torch.equal(
        logits_of(planted_target(target_of("gemma3"), [plant]))[1], logits_of(target_of("gemma3"))[1]
    )


@given(st.dictionaries(st.sampled_from("abc"), st.integers()), st.dictionaries(st.sampled_from("abc"), st.integers()))
def test_merging_keeps_what_is_not_named(old: dict[str, int], new: dict[str, int]) -> None:
    assert merged({"x": {**dict.fromkeys("abc", 0), **old}}, {"x": new}) == {
        "x": {**dict.fromkeys("abc", 0), **old, **new}
    }
