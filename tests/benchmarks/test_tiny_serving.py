"""Tiny models for serving are reproducible and can be saved."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.tiny_serving import FAMILIES, save_tiny, tiny_module


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_are_the_same_on_any_machine_and_exact_in_bfloat16(family: str) -> None:
    module = tiny_module(family)
    assert all(torch.equal(one, one.bfloat16().float()) for one in module.parameters())
    assert all(map(torch.equal, module.parameters(), tiny_module(family).parameters()))


def test_a_tiny_model_is_saved_as_a_folder(tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["sliding_window"] == 16
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
