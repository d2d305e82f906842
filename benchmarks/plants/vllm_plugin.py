"""What the capturing script for vLLM runs, in vLLM's environment, so that a model has a case's errors in it."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.plants.in_vllm import OPERATIONS
from benchmarks.plants.vllm_attention import set_windows

Change = Callable[[Any], None]
"""Puts errors into a loaded model."""


def plug_in(plants: str) -> Change:
    """The errors, as JSON: pairs of an operation's name and its parameters. Those that a model must be built with are
    put in place at once."""
    told: list[tuple[str, dict[str, Any]]] = json.loads(plants)
    windows = [one for name, one in told if name == "sight" and one["sight"] in ("window", "no_window")]
    sizes = {layer: one.get("size") for one in windows for layer in one["layers"]}
    if sizes:
        set_windows(sizes)
    return partial(_change, told)


@torch.no_grad()
def _change(plants: list[tuple[str, dict[str, Any]]], model: Any) -> None:
    for name, parameters in plants:
        OPERATIONS[name](model, **parameters)
