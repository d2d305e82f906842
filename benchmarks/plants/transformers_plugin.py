"""What the capturing script for transformers runs, so that a model has a case's errors in it."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.plants.operations import IN_MODELS

Change = Callable[[Any], None]
"""Puts errors into a loaded model."""


def plug_in(plants: str) -> Change:
    """The errors, as JSON: pairs of an operation's name and its parameters."""
    return partial(_change, json.loads(plants))


@torch.no_grad()
def _change(plants: list[tuple[str, dict[str, Any]]], model: Any) -> None:
    for name, parameters in plants:
        IN_MODELS[name].function(model, **parameters)
