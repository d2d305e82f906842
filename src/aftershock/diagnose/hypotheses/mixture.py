"""What can be wrong with a mixture of experts, its router's logits given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from aftershock.diagnose.architecture import Mixture
from aftershock.diagnose.functions import Tokens, activated, chosen, linear, mixed, wide
from aftershock.diagnose.hypotheses.changes import Change, computed, in_layer, in_mixture, with_values
from aftershock.diagnose.hypotheses.fitting import number
from aftershock.diagnose.hypotheses.mlp import ACTIVATIONS
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, listed, numbers
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.weights import ROUTED, Part

KINDS = ("expert",)

EXPERTS = 16
"""Experts at most whose order is looked for."""

Shares = Callable[[torch.Tensor, Mixture], torch.Tensor]
"""Each expert's share in each token, shape (tokens, experts), from the router's logits."""


def _mixture(place: Place) -> Mixture:
    mixture = place.replica.architecture.layers[place.layer].mixture
    assert mixture is not None
    return mixture


def router_normalisation(place: Place) -> Iterator[Candidate]:
    """Shares divided by their sum, or not; shares by a sigmoid."""
    own = _mixture(place).normalised
    words = {True: "divided by their sum", False: "as they are"}
    change = in_mixture(lambda mixture: replace(mixture, normalised=not mixture.normalised))
    yield Candidate("router_normalisation", change, "shares", words[not own], words[own])
    yield Candidate("router_normalisation", _shared(_sigmoid), "shares", "by a sigmoid", "by a softmax")


def router_top_k(place: Place) -> Iterator[Candidate]:
    """Another number of experts."""
    own = _mixture(place)
    for count in (count for count in range(1, min(own.experts, 2 * own.chosen + 2) + 1) if count != own.chosen):
        change = in_mixture(with_values(chosen=count))
        yield Candidate("router_top_k", change, "experts a token", count, own.chosen)


def router_softmax_order(place: Place) -> Iterator[Candidate]:
    """Shares by a softmax over those that were chosen by one already."""
    said = "softmax of the chosen shares", "softmax, then the largest"
    yield Candidate("router_softmax_order", _shared(_twice), "shares", *said)


def _sigmoid(logits: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    top, index = torch.sigmoid(wide(logits)).topk(mixture.chosen, -1)
    top = top / top.sum(-1, keepdim=True) if mixture.normalised else top
    return torch.zeros_like(wide(logits)).scatter(-1, index, top * mixture.scale).to(logits.dtype)


def _twice(logits: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    top, index = torch.softmax(wide(logits), -1).topk(mixture.chosen, -1)
    again = torch.softmax(top, -1)
    return torch.zeros_like(wide(logits)).scatter(-1, index, again * mixture.scale).to(logits.dtype)


def _shared(shares: Shares) -> Change:
    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        layer = replica.architecture.layers[point.layer]
        assert layer.mixture is not None
        gate, up, down = (replica.weights[Part(kind, point.layer)] for kind in ROUTED)
        return mixed(inputs[0], shares(inputs[1], layer.mixture), layer.activation, gate, up, down)

    return computed("expert", compute)


def router_scaling(place: Place) -> Iterator[Candidate]:
    """Shares times another factor."""
    own = _mixture(place).scale

    def of(scale: float) -> Change:
        return in_mixture(lambda mixture: replace(mixture, scale=scale))

    for found in number(place, "router_scaling", of, numbers(1 / 64, 64, 25), own):
        yield replace(found, parameter="factor")


def activation_function(place: Place) -> Iterator[Candidate]:
    """Another function in the experts; gate and up of the experts swapped."""
    own = place.replica.architecture.layers[place.layer].activation
    for name in (name for name in ACTIVATIONS if name != own):
        change = in_layer(with_values(activation=name))
        yield Candidate("activation_function", change, "function", name, own)

    def swapped(replica: Replica, layer: int) -> Replica:
        gate, up = Part(ROUTED[0], layer), Part(ROUTED[1], layer)
        taken = {gate: replica.weights[up], up: replica.weights[gate]}
        return replace(replica, weights={**replica.weights, **taken})

    yield Candidate("gate_up_swapped", swapped)


def expert_order(place: Place) -> Iterator[Candidate]:
    """Experts that answer for others, and experts that don't answer: how much of each one's answer is in the place of
    each follows by least squares."""
    own = _mixture(place)
    if not place.direct or own.experts > EXPERTS:
        return
    values, logits = (inputs[place.rows] for inputs in place.inputs)
    answers, shares = _answers(place, values), chosen(logits, own)
    given = torch.einsum("te,atc->eatc", shares, answers).flatten(2).flatten(0, 1)
    normal = given @ given.T
    found = torch.linalg.lstsq(normal, (given @ place.values.flatten())[:, None], driver="gelsd").solution
    table = found.view(own.experts, own.experts)
    order = table.argmax(-1)
    used = shares.sum(0) > 0
    order = torch.where(used, order, torch.arange(own.experts))
    if not order.equal(torch.arange(own.experts)):
        yield Candidate("expert_order", _reordered(order), "experts", listed(order.tolist()))
    gone = used & (table.diagonal() < 0.5) & (order == torch.arange(own.experts))
    silent = gone if gone.any() else used & (table.diagonal().abs() < 0.1)
    if silent.any():

        def without(logits: torch.Tensor, mixture: Mixture) -> torch.Tensor:
            return chosen(logits, mixture).masked_fill(silent, 0.0)

        yield Candidate("expert_missing", _shared(without), "experts", listed(silent.nonzero()[:, 0].tolist()))


def expert_missing(place: Place) -> Iterator[Candidate]:
    """One expert that does not answer; the last of those chosen left out."""
    own = _mixture(place)
    for expert in range(own.experts):

        def without(logits: torch.Tensor, mixture: Mixture, expert: int = expert) -> torch.Tensor:
            kept = torch.arange(mixture.experts) != expert
            return chosen(logits, mixture) * kept.to(logits.dtype)

        yield Candidate("expert_missing", _shared(without), "expert", expert)


def shared_expert(place: Place) -> Iterator[Candidate]:
    """The shared expert left out, added whole, or added twice."""
    ways = {
        "left out": lambda routed, shared, share: routed,
        "without its gate": lambda routed, shared, share: routed + shared,
        "added twice": lambda routed, shared, share: routed + 2 * torch.sigmoid(share) * shared,
    }
    for words, way in ways.items():
        yield Candidate("shared_expert", _mixed(way), "shared expert", words, blamed="expert")


def _mixed(way: Callable[..., torch.Tensor]) -> Change:
    return computed("mixture", lambda replica, point, inputs, tokens: way(*inputs))


def _answers(place: Place, values: torch.Tensor) -> torch.Tensor:
    """What each expert answers to each token, fp64, shape (experts, tokens, channels)."""
    weights, layer = place.replica.weights, place.replica.architecture.layers[place.layer]
    tensors = (weights[Part(kind, place.layer)] for kind in ROUTED)
    return torch.stack(
        [
            linear(activated(linear(values, gate), linear(values, up), layer.activation), down)
            for gate, up, down in zip(*tensors, strict=True)
        ]
    )


def _reordered(order: torch.Tensor) -> Change:
    def change(replica: Replica, layer: int) -> Replica:
        parts = [Part(kind, layer) for kind in ROUTED]
        return replace(replica, weights={**replica.weights, **{part: replica.weights[part][order] for part in parts}})

    return change


HYPOTHESES = (
    Hypothesis(KINDS, "choice", router_normalisation),
    Hypothesis(KINDS, "choice", router_top_k),
    Hypothesis(KINDS, "choice", router_softmax_order),
    Hypothesis(KINDS, "choice", activation_function),
    Hypothesis(KINDS, "choice", expert_missing),
    Hypothesis(("mixture",), "choice", shared_expert),
    Hypothesis(KINDS, "number", router_scaling),
    Hypothesis(KINDS, "structure", expert_order),
)
"""What can be wrong with a mixture of experts."""
