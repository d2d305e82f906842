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
from aftershock.diagnose.points import LINEAR, NORMED
from aftershock.diagnose.weights import Part

BLOCK = 32
"""Words that share a scale in GGUF's formats."""

KINDS = tuple(kind for kind in LINEAR if kind != "logits")


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
    count, weights = len(place.replica.architecture.layers), place.replica.weights
    for layer in range(count):
        own, bias = Part(place.kind, layer), Part(place.kind, layer, "bias")
        # Layers with and without experts have maps of other sizes.
        if layer == place.layer or own not in weights or weights[own].shape != _weight(place).shape:
            continue
        apart = layer - place.layer
        taken = with_tensors_of(place.kind, partial(_beside, place.kind, apart, count))
        yield Candidate("weight_of_other_layer", taken, "layer", layer, place.layer)
        if bias in weights:
            words = with_bias(place.kind, weights[bias])
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
    """All words times one factor, as they are or in blocks of a quantised tensor."""
    if not place.direct:
        yield from number(place, "weight_scale", lambda f: _scaled(place.kind, f), numbers(1 / 64, 64, 37), 1.0)
        return
    bias = 0.0 if (own := _bias(place)) is None else own.double()
    factor = scale(place.values - bias, place.expected - bias)
    factor = rounded(place, lambda own: _scaled(place.kind, own), factor)
    yield Candidate("weight_scale", _scaled(place.kind, factor), "factor", factor, 1.0)
    if _weight(place).shape[-1] % BLOCK == 0:
        yield Candidate("weight_scale", _in_blocks(place.kind, factor, factor), "factor", factor, 1.0)
        flat = place.truth(place.changed(_in_blocks(place.kind, 0.0, 1.0)))
        step = scale(place.values - flat, place.expected - flat)
        step = rounded(place, lambda own: _in_blocks(place.kind, own, 1.0), step)
        yield Candidate("weight_scale", _in_blocks(place.kind, step, 1.0), "factor of blocks' scales", step, 1.0)


def _in_blocks(kind: str, step: float, least: float) -> Change:
    """Words of blocks whose scale and minimum are multiplied each, and kept in fp16, as in GGUF's Q4_1: a word is
    scale x code + minimum, the code 0 to 15."""

    def edit(weight: torch.Tensor) -> torch.Tensor:
        blocks = weight.double().reshape(*weight.shape[:-1], -1, BLOCK)
        low, high = blocks.aminmax(dim=-1, keepdim=True)
        own = (high - low) / 15
        codes = ((blocks - low) / own.where(own > 0, 1)).round()
        words: torch.Tensor = (low * least).half().double() + codes * (own * step).half().double()
        return words.flatten(-2)

    return with_tensor(kind, edit)


def _scaled(kind: str, factor: float) -> Change:
    return with_tensor(kind, lambda weight: weight.double() * factor)


HYPOTHESES = (
    Hypothesis((*KINDS, *NORMED), "choice", bias_missing, same_for_all=True),
    Hypothesis(("gate", "up"), "choice", gate_up_swapped, same_for_all=True),
    Hypothesis(KINDS, "choice", weight_of_other_layer, same_for_all=True),
    Hypothesis(KINDS, "choice", weight_transposed, same_for_all=True),
    Hypothesis(KINDS, "choice", input_dtype),
    Hypothesis(KINDS, "number", weight_scale, same_for_all=True),
    Hypothesis((*KINDS, *NORMED), "structure", bias_extra, same_for_all=True),
)
"""What can be wrong with a linear map as a whole."""
