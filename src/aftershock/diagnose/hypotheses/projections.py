"""What can be wrong with a linear map: its words, their order, its bias, the precision of its input."""

from collections.abc import Iterator
from functools import partial

import torch

from aftershock.diagnose.hypotheses.changes import (
    Change,
    before,
    joined,
    with_bias,
    with_tensor,
    with_tensors_of,
    without_bias,
)
from aftershock.diagnose.hypotheses.fitting import number, rounded, scale
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, numbers
from aftershock.diagnose.hypotheses.rounding import TYPES, grouped, lower_than
from aftershock.diagnose.weights import Part

KINDS = ("q", "k", "v", "o", "gate", "up", "down", "router")


def _weight(place: Place) -> torch.Tensor:
    return place.replica.weights[Part(place.kind, place.layer)]


def _bias(place: Place) -> torch.Tensor | None:
    return place.replica.weights.get(Part(place.kind, place.layer, "bias"))


def bias_missing(place: Place) -> Iterator[Candidate]:
    """The bias left out, here alone or in all maps that it is hidden in."""
    if _bias(place) is None:
        return
    yield Candidate("bias_missing", without_bias(place.kind))
    hidden = dict.fromkeys(
        part.kind for part in place.parts if Part(part.kind, place.layer, "bias") in place.replica.weights
    )
    if len(hidden) > 1:
        yield Candidate("bias_missing", joined(*map(without_bias, hidden)))


def bias_extra(place: Place) -> Iterator[Candidate]:
    """A constant added: the mean of what is left over."""
    if not place.direct:
        return
    constant = (place.values - place.expected).mean(0)
    own = _bias(place)
    change = with_bias(place.kind, constant if own is None else own.double() + constant)
    yield Candidate("bias_extra", change, "norm of the bias", round(float(constant.norm()), 4))


def _beside(kind: str, apart: int, count: int, layer: int) -> Part:
    """The weight of the layer so many layers on, of `count`."""
    return Part(kind, (layer + apart) % count)


def weight_of_other_layer(place: Place) -> Iterator[Candidate]:
    """The words of another layer; their bias alone."""
    count = len(place.replica.architecture.layers)
    for layer in range(count):
        own, bias = Part(place.kind, layer), Part(place.kind, layer, "bias")
        if layer == place.layer or own not in place.replica.weights:
            continue
        apart = layer - place.layer
        taken = with_tensors_of(place.kind, partial(_beside, place.kind, apart, count))
        yield Candidate("weight_of_other_layer", taken, "layer", layer, place.layer)
        if bias in place.replica.weights:
            words = with_bias(place.kind, place.replica.weights[bias])
            yield Candidate("weight_of_other_layer", words, "layer of the bias", layer, place.layer)


def weight_transposed(place: Place) -> Iterator[Candidate]:
    """Rows taken for columns."""
    if _weight(place).dim() == 2:
        turned = with_tensor(place.kind, lambda weight: weight.reshape(weight.shape[1], weight.shape[0]).T)
        yield Candidate("weight_transposed", turned)


def gate_up_swapped(place: Place) -> Iterator[Candidate]:
    """The words of gate where those of up belong, and the other way round."""
    other = {"gate": "up", "up": "gate"}[place.kind]
    if Part(other, place.layer) in place.replica.weights:
        yield Candidate("gate_up_swapped", with_tensors_of(place.kind, lambda layer: Part(other, layer)))


def input_dtype(place: Place) -> Iterator[Candidate]:
    """Inputs rounded to a lower precision."""
    channels = place.inputs[0].shape[-1]
    groups = {"token": channels, "tensor": None} | ({"block of 32": 32} if channels % 32 == 0 else {})
    for lower in lower_than(place.replica.arithmetic.dtype, TYPES + grouped(groups)):
        yield Candidate("input_dtype", before(place.kind, lower.rounding), "input", lower.name)


def weight_scale(place: Place) -> Iterator[Candidate]:
    """All words times one factor."""
    if place.direct:
        bias = 0.0 if (own := _bias(place)) is None else own.double()
        factor = scale(place.values - bias, place.expected - bias)
        factor = rounded(place, lambda own: _scaled(place.kind, own), factor)
        yield Candidate("weight_scale", _scaled(place.kind, factor), "factor", factor, 1.0)
    else:
        yield from number(place, "weight_scale", lambda f: _scaled(place.kind, f), numbers(1 / 64, 64, 37), 1.0)


def _scaled(kind: str, factor: float) -> Change:
    return with_tensor(kind, lambda weight: weight.double() * factor)


HYPOTHESES = (
    Hypothesis(KINDS, "choice", bias_missing),
    Hypothesis(("gate", "up"), "choice", gate_up_swapped),
    Hypothesis(KINDS, "choice", weight_of_other_layer),
    Hypothesis(KINDS, "choice", weight_transposed),
    Hypothesis(KINDS, "choice", input_dtype),
    Hypothesis(KINDS, "number", weight_scale),
    Hypothesis(KINDS, "structure", bias_extra),
)
"""What can be wrong with a linear map as a whole."""
