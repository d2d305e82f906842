"""What the capturing script for ONNX Runtime runs, in its environment, so that a graph has a case's errors in it."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.plants.in_graphs import OPERATIONS

Change = Callable[[Any], None]
"""Puts errors into a loaded graph (onnx.ModelProto)."""


def plug_in(plants: str) -> Change:
    """The errors, as JSON: pairs of an operation's name and its parameters."""
    return partial(_change, json.loads(plants))


def _change(plants: list[tuple[str, dict[str, Any]]], model: Any) -> None:
    for name, parameters in plants:
        OPERATIONS[name](model.graph, **parameters)
