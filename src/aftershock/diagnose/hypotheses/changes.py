"""Ways to change what a replica computes in one layer (-1: outside the layers)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from aftershock.diagnose.architecture import Attention, Layer, Mixture, Norm, Rotation
from aftershock.diagnose.functions import Tokens, normalised
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Altered, Compute, Replica
from aftershock.diagnose.weights import Part, Role

Change = Callable[[Replica, int], Replica]
"""The replica that computes something else in a layer."""

Edit = Callable[[torch.Tensor], torch.Tensor]
"""Other values of the same shape."""


def with_values(**values: Any) -> Callable[[Any], Any]:
    """An edit that gives some fields of a part of an architecture other values."""
    return lambda part: replace(part, **values)


def in_layer(edit: Callable[[Layer], Layer]) -> Change:
    """Another layer."""

    def change(replica: Replica, layer: int) -> Replica:
        own = replica.architecture.layers
        layers = (*own[:layer], edit(own[layer]), *own[layer + 1 :])
        return replace(replica, architecture=replace(replica.architecture, layers=layers))

    return change


def in_attention(edit: Callable[[Attention], Attention]) -> Change:
    """Another attention."""
    return in_layer(lambda layer: replace(layer, attention=edit(layer.attention)))


def in_rotation(edit: Callable[[Rotation], Rotation]) -> Change:
    """Another rotation of queries and keys."""

    def edited(attention: Attention) -> Attention:
        assert attention.rotation is not None
        return replace(attention, rotation=edit(attention.rotation))

    return in_attention(edited)


def in_mixture(edit: Callable[[Mixture], Mixture]) -> Change:
    """Another way to choose and weigh experts."""

    def edited(layer: Layer) -> Layer:
        assert layer.mixture is not None
        return replace(layer, mixture=edit(layer.mixture))

    return in_layer(edited)


def with_tensor(kind: str, edit: Edit, role: Role = "weight") -> Change:
    """Other words of a tensor."""

    def change(replica: Replica, layer: int) -> Replica:
        part = Part(kind, layer, role)
        return replace(replica, weights={**replica.weights, part: edit(replica.weights[part])})

    return change


def with_bias(kind: str, bias: torch.Tensor) -> Change:
    """Another bias of a linear map, or one where there was none; shape (outputs,)."""

    def change(replica: Replica, layer: int) -> Replica:
        return replace(replica, weights={**replica.weights, Part(kind, layer, "bias"): bias})

    return change


def without_bias(kind: str) -> Change:
    """No bias of a linear map."""

    def change(replica: Replica, layer: int) -> Replica:
        gone = Part(kind, layer, "bias")
        return replace(replica, weights={part: own for part, own in replica.weights.items() if part != gone})

    return change


def with_tensors_of(kind: str, other: Callable[[int], Part]) -> Change:
    """The weight of another part, given the layer, and its bias where it has one."""

    def change(replica: Replica, layer: int) -> Replica:
        source = other(layer)
        taken = {Part(kind, layer): replica.weights[source]}
        bias = replica.weights.get(Part(source.kind, source.layer, "bias"))
        if bias is not None:
            taken[Part(kind, layer, "bias")] = bias
        return replace(replica, weights={**replica.weights, **taken})

    return change


def computed(kind: str, compute: Compute, sources: tuple[str, ...] = ()) -> Change:
    """Another computation of a point, of points of other kinds in its layer where `sources` names them."""

    def change(replica: Replica, layer: int) -> Replica:
        point = Point(kind, layer)
        inputs = tuple(replica.source((own,), layer) for own in sources) or replica.inputs(point)
        return replace(replica, altered={**replica.altered, point: Altered(inputs, compute)})

    return change


def before(kind: str, edit: Edit, which: tuple[int, ...] = (0,)) -> Change:
    """Other values of those inputs of a point that `which` numbers."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        edited = [edit(own) if number in which else own for number, own in enumerate(inputs)]
        return replica.own(point, edited, tokens)

    return computed(kind, compute)


def after(kind: str, edit: Edit) -> Change:
    """Other values of a point."""
    return computed(kind, lambda replica, point, inputs, tokens: edit(replica.own(point, inputs, tokens)))


def with_norm(kind: str, edit: Callable[[Norm], Norm]) -> Change:
    """Another normalisation at one kind of point."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        weight = replica.weights[Part(kind, point.layer)]
        bias = replica.weights.get(Part(kind, point.layer, "bias"))
        norm = edit(replica.architecture.norm(kind, point.layer))
        return normalised(inputs[0], norm, weight, bias)

    return computed(kind, compute)


def joined(*changes: Change) -> Change:
    """All of these, one after another."""

    def change(replica: Replica, layer: int) -> Replica:
        for own in changes:
            replica = own(replica, layer)
        return replica

    return change
