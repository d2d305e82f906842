"""The replica: a decoder of any supported family as a graph of points, each computed from a few before it.

`run` walks all of them in call order and hands each value to `see`, which returns the values to go on with: the same
ones (a run of its own), or a target's (a forced replay, in which every component is judged on the inputs it had).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from aftershock.diagnose.architecture import Architecture
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.functions import (
    Tokens,
    activated,
    capped,
    chosen,
    linear,
    mixed,
    normalised,
)
from aftershock.diagnose.points import ENTERING, INSIDE, LINEAR, NORMED, SOURCES, Point
from aftershock.diagnose.weights import ROUTED, Part, Weights

GoOn = Callable[[Point, torch.Tensor], torch.Tensor]
"""Told a point and the values computed for it, shape (tokens, channels); returns those to go on with."""

Compute = Callable[["Replica", Point, Sequence[torch.Tensor], Tokens], torch.Tensor]
"""A point's values from those of its inputs, each of shape (tokens, channels), in the arithmetic of the replica."""


@dataclass(frozen=True, eq=False)
class Altered:
    """What a point is computed from, and how, where it is not as the architecture says."""

    inputs: tuple[Point, ...]
    compute: Compute


@dataclass(frozen=True, eq=False)
class Replica:
    """An architecture with its weights, the arithmetic it computes in, and the points that it computes otherwise."""

    architecture: Architecture
    weights: Weights
    arithmetic: Arithmetic
    altered: Mapping[Point, Altered] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """All points in call order."""
        layers = range(len(self.architecture.layers))
        inside = [Point(kind, number) for number in layers for kind in INSIDE if self.has(kind, number)]
        return [Point("embedding"), *inside, Point("final_norm"), Point("logits")]

    def has(self, kind: str, layer: int) -> bool:
        """Whether a layer has points of a kind."""
        own = self.architecture.layers[layer]
        match kind:
            case "q_norm" | "k_norm":
                return own.attention.norm is not None
            case "q_rope" | "k_rope":
                return own.attention.rotation is not None
            case "post_attn_norm":
                return own.post_attn_norm is not None
            case "post_mlp_norm":
                return own.post_mlp_norm is not None
            case "router" | "expert":
                return own.mixture is not None
            case "gate" | "up" | "down" | "shared_router":
                return Part(kind, layer) in self.weights
            case "activation":
                return Part("up", layer) in self.weights
            case "mixture":
                return Part("shared_router", layer) in self.weights
        return True

    def inputs(self, point: Point) -> tuple[Point, ...]:
        """The points that a point is computed from."""
        if point in self.altered:
            return self.altered[point].inputs
        return tuple(dict.fromkeys(self.source(kinds, point.layer) for kinds in SOURCES[point.kind]))

    def compute(self, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        """A point's values, shape (tokens, channels), from those of its inputs."""
        if point in self.altered:
            return self.altered[point].compute(self, point, inputs, tokens)
        return self.own(point, inputs, tokens)

    def own(self, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        """A point's values as the architecture has them, whether or not it is altered."""
        kind = point.kind
        if kind == "embedding":
            first, rows = self.architecture.learned_from, self.embedded(tokens)
            if first is None:
                return rows
            return rows + self.weights[Part("position", -1)][tokens.positions + first].to(rows.dtype)
        if kind == "logits":
            return self._logits(inputs[0])
        if kind in LINEAR:
            return self.linear(kind, point.layer, inputs[0])
        if kind in NORMED:
            return self._norm(kind, point.layer, inputs[0])
        layer = self.architecture.layers[point.layer]
        attention = layer.attention
        match kind:
            case "q_rope" | "k_rope":
                assert attention.rotation is not None
                return self.arithmetic.turned(inputs[0], attention.rotation, attention.channels, tokens.positions)
            case "attention":
                q, k, v = inputs
                return self.arithmetic.attended(q, k, v, attention, tokens)
            case "attn_residual" | "residual":
                return inputs[0] + inputs[1] * layer.residual_multiplier
            case "activation":
                gate = inputs[0] if len(inputs) == 2 else None
                table = self.arithmetic.gelu if layer.activation.startswith("gelu") else None
                return activated(gate, inputs[-1], layer.activation, table)
            case "expert":
                assert layer.mixture is not None
                gate, up, down = (self.weights[Part(own, point.layer)] for own in ROUTED)
                return mixed(inputs[0], chosen(inputs[1], layer.mixture), layer.activation, gate, up, down)
        # A mixture: the chosen experts and the shared one.
        routed, shared, share = inputs
        return routed + torch.sigmoid(share) * shared

    @torch.inference_mode()
    def walk(
        self, tokens: Tokens, go_on: GoOn, ends: torch.Tensor | None = None
    ) -> Iterator[tuple[Point, torch.Tensor]]:
        """All points in order with their values; later ones are computed from what `go_on` makes of them. Logits are
        those of the tokens `ends` alone, where given."""
        values: dict[Point, torch.Tensor] = {}
        for point in self.points:
            inputs = [values[own] for own in self.inputs(point)]
            if point.kind == "logits" and ends is not None:
                inputs = [own[ends.to(own.device)] for own in inputs]
            found = self.compute(point, inputs, tokens)
            yield point, found
            values[point] = go_on(point, found)
            if point.kind == "residual":
                values = {point: values[point]}

    def embedded(self, tokens: Tokens) -> torch.Tensor:
        """The rows of the tokens alone, shape (tokens, channels), without positions."""
        rows = self.weights[Part("embedding", -1)][tokens.ids].to(self.arithmetic.dtype)
        return rows * self.architecture.embedding_multiplier

    def linear(self, kind: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The linear map of a kind, shape (tokens, outputs), of values of shape (tokens, inputs)."""
        bias = self.weights.get(Part(kind, layer, "bias"))
        return linear(self.arithmetic.fed(kind, x), self.weights[Part(kind, layer)], bias)

    def source(self, kinds: tuple[str, ...], layer: int) -> Point:
        """The first of some kinds that a layer has; see `SOURCES`."""
        if ENTERING in kinds:
            before = (len(self.architecture.layers) if layer < 0 else layer) - 1
            return Point("residual", before) if before >= 0 else Point("embedding")
        if layer < 0:
            return Point(kinds[0])
        return next(Point(kind, layer) for kind in kinds if self.has(kind, layer))

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear("logits", -1, x) * self.architecture.logit_multiplier
        return capped(logits, self.architecture.logit_softcap)

    def _norm(self, kind: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        norm = self.architecture.norm(kind, layer)
        return normalised(x, norm, self.weights[Part(kind, layer)], self.weights.get(Part(kind, layer, "bias")))
