"""Routers that choose or weigh experts otherwise: from logits, shape (tokens, experts), to weights and numbers of the
chosen experts, shape (tokens, chosen) both, with the numbers that the right router chose as the third argument's width.

Torch alone is needed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.plants.places import Layers, modules_at, wrap

Route = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""From (logits in float32, how many experts a token has) and named parameters to weights and experts."""


def softmax_then_top(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of the softmax over all experts, as they are (OLMoE, Qwen1.5)."""
    return _largest(logits.softmax(-1), count)


def top_then_softmax(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax over the chosen experts alone: weights that add up to 1 (Mixtral)."""
    chosen, experts = _largest(logits, count)
    return chosen.softmax(-1), experts


def scaled(logits: torch.Tensor, count: int, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights that add up to a factor."""
    weights, experts = top_then_softmax(logits, count)
    return weights * factor, experts


def other_count(logits: torch.Tensor, count: int, chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Another number of experts for each token."""
    return top_then_softmax(logits, chosen)


def by_sigmoid(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmoids, brought to the sum 1, in place of a softmax."""
    weights, experts = _largest(logits.sigmoid(), count)
    return weights / weights.sum(-1, keepdim=True), experts


def weights_reversed(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The right experts; the best one gets the least weight."""
    weights, experts = top_then_softmax(logits, count)
    return weights.flip(-1), experts


def full_experts(logits: torch.Tensor, count: int, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An expert takes the first `capacity` tokens that choose it; for later ones it gives nothing."""
    weights, experts = top_then_softmax(logits, count)
    chosen = torch.nn.functional.one_hot(experts, logits.shape[-1])
    before = chosen.sum(1).cumsum(0) - chosen.sum(1)
    return weights.masked_fill(before.gather(1, experts) >= capacity, 0.0), experts


def negative_to_first(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens whose logits are negative for most experts, so that fewer than `count` are above 0, get the first ones
    for those that are missing: the maximum was begun at 0."""
    weights, experts = top_then_softmax(logits, count)
    positive = logits.gather(1, experts) > 0
    return weights, torch.where(positive, experts, torch.arange(count).expand_as(experts))


def _largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = values.topk(count, -1)
    return found.values, found.indices


ROUTES: dict[str, Route] = {
    each.__name__: each
    for each in (
        softmax_then_top,
        top_then_softmax,
        scaled,
        other_count,
        by_sigmoid,
        weights_reversed,
        full_experts,
        negative_to_first,
    )
}


def change_routing(model: Any, route: str, layers: Layers = "all", **parameters: Any) -> None:
    """The routers of a live transformers model choose or weigh otherwise (`ROUTES`)."""
    chosen = partial(ROUTES[route], **parameters)

    def around(inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits, weights, experts = inner(values)
            other, others = chosen(logits.float(), experts.shape[-1])
            return logits, other.to(weights.dtype), others

        return forward

    for router in modules_at(model, "router", layers):
        wrap(router, around)
