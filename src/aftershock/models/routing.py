"""Routers, whose choice of experts follows from their logits within one module."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _LogitsGiven(TorchFunctionMode):
    """While active, a linear map yields the given logits instead of its own product."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self._logits = logits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._logits if func is torch.nn.functional.linear else func(*args, **(kwargs or {}))


def chosen_experts(output: Any) -> torch.Tensor | None:
    """The experts that a router's output chooses, int64, shape (tokens, experts a token); None for the gate of a shared
    expert, which chooses none."""
    return output[2] if isinstance(output, tuple) else None


def reroute(router: torch.nn.Module, hidden: torch.Tensor, logits: torch.Tensor) -> Any:
    """What a router would have returned had its logits been these.

    `hidden` is the router's input, shape (tokens, channels) and `logits` has shape (tokens, experts). Returns
    (logits, weights of the chosen experts, indices of the chosen experts): in transformers a router computes
    all three, so changing the logits it returned would leave the choice as it was.
    """
    with _LogitsGiven(logits):
        return router.forward(hidden)
