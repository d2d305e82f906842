"""What can be wrong with the MLP's activation and with the residual sums."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from aftershock.diagnose.functions import Tokens, activated
from aftershock.diagnose.hypotheses.changes import Change, after, computed, in_layer, joined, with_values
from aftershock.diagnose.hypotheses.fitting import number, rounded
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, numbers
from aftershock.diagnose.points import ENTERING, SOURCES, Point
from aftershock.diagnose.replica import Compute, Replica

ACTIVATIONS = (
    "silu",
    "gelu",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "relu2",
    "sigmoid",
    "tanh",
    "mish",
    "leaky_relu",
    "linear",
)
"""Names of activation functions in transformers."""

RESIDUALS = ("attn_residual", "residual")


def activation_function(place: Place) -> Iterator[Candidate]:
    """Another function, or none."""
    own = place.replica.architecture.layers[place.layer].activation
    for name in (name for name in ACTIVATIONS if name != own):
        change = in_layer(with_values(activation=name))
        yield Candidate("activation_function", change, "function", name, own)


def gate_up_swapped(place: Place) -> Iterator[Candidate]:
    """The function of up, times gate."""

    def swapped(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        gate, up = inputs
        return activated(up, gate, replica.architecture.layers[point.layer].activation)

    if len(place.inputs) == 2:
        yield Candidate("gate_up_swapped", computed("activation", swapped))


def activation_clamped(place: Place) -> Iterator[Candidate]:
    """Values, or gate and up, cut off at a limit."""
    if not place.direct:
        return
    limit = float(place.values.abs().max())
    cut = after("activation", lambda values: values.clamp(-limit, limit))
    yield Candidate("activation_clamped", cut, "limit of the product", limit, "none")

    def of(limit: float) -> Change:
        return computed("activation", _limited(limit))

    largest = max(float(own.abs().max()) for own in place.inputs)
    for found in number(place, "activation_clamped", of, numbers(largest / 100, largest, 41), "none"):
        yield replace(found, parameter="limit of gate and up")


def _limited(limit: float) -> Compute:
    """Gate cut off above, up on both sides (as gpt-oss does)."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        gate = inputs[0].clamp(max=limit) if len(inputs) == 2 else None
        up = inputs[-1].clamp(-limit, limit)
        return activated(gate, up, replica.architecture.layers[point.layer].activation)

    return compute


def _side(which: int, replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
    return inputs[which]


def residual(place: Place) -> Iterator[Candidate]:
    """One side of the sum left out; or the side that is added times a factor."""
    own = place.replica.architecture.layers[place.layer].residual_multiplier
    for which, name in enumerate(("what enters", "what is added")):
        left = computed(place.kind, partial(_side, 1 - which))
        yield Candidate("residual_missing", left, "left out", name)
    if place.direct:
        entering, added = (values[place.rows] for values in place.inputs)
        factor = float(((place.values - entering) * added).sum() / added.square().sum())
        factor = rounded(place, lambda own: _multiplied(place.kind, own), factor)
        yield Candidate("residual_multiplier", _multiplied(place.kind, factor), "factor", factor, own)
    else:
        grid = numbers(1 / 32, 32, 37)
        for found in number(place, "residual_multiplier", lambda f: _multiplied(place.kind, f), grid, own):
            yield replace(found, parameter="factor")


def _multiplied(kind: str, factor: float) -> Change:
    return computed(kind, lambda replica, point, inputs, tokens: inputs[0] + inputs[1] * factor)


def norm_order(place: Place) -> Iterator[Candidate]:
    """The sum taken with the normalised values instead of those that the norm was of; the norm after the sum."""
    norm = {"attn_residual": "attn_norm", "residual": "mlp_norm"}[place.kind]

    def plus(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        return inputs[0] + inputs[1]

    change = computed(place.kind, plus, (norm, _added(place, place.kind)))
    yield Candidate("norm_order", change, "added to", f"the output of {norm}")


def _added(place: Place, kind: str) -> str:
    """The kind that a residual sum adds to what enters."""
    return place.replica.source(SOURCES[kind][-1], place.layer).kind


def in_parallel(place: Place) -> Iterator[Candidate]:
    """The MLP fed with what enters the layer. Where the sum after attention shows as the input of the MLP's norm alone,
    it looks as if attention were not added; but the layer's output has all three."""
    branches = [_added(place, kind) for kind in RESIDUALS]

    def whole(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        return inputs[0] + inputs[1] + inputs[2]

    change = joined(computed("attn_residual", partial(_side, 0)), computed("residual", whole, (ENTERING, *branches)))
    besides = ("attn_residual", "residual")
    said = "input", "what enters the layer", "the sum after attention"
    yield Candidate("norm_order", change, *said, blamed="mlp_norm", besides=besides)


HYPOTHESES = (
    Hypothesis(("activation",), "choice", activation_function),
    Hypothesis(("activation",), "choice", gate_up_swapped, same_for_all=True),
    Hypothesis(("activation",), "number", activation_clamped),
    Hypothesis(RESIDUALS, "choice", norm_order),
    Hypothesis(RESIDUALS, "choice", in_parallel),
    Hypothesis(RESIDUALS, "number", residual, same_for_all=True),
)
"""What can be wrong with activations and residual sums."""
