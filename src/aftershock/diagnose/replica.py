"""The replica: a decoder of any supported family, walked point by point.

`run` computes every point from those before it and hands it to `see`, which returns the values to go on with: the same
ones (a run of its own), or a target's (a forced replay, in which every component is judged on the inputs it had).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from aftershock.diagnose.architecture import Architecture
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.functions import Tokens, activated, attended, chosen, linear, mixed, normalised, rotated
from aftershock.diagnose.points import Point
from aftershock.diagnose.weights import Part, Weights

See = Callable[[Point, torch.Tensor], torch.Tensor]
"""Told a point and the values computed for it, shape (tokens, channels); returns those to go on with."""


@dataclass(frozen=True, eq=False)
class Replica:
    """An architecture with its weights, and the arithmetic it computes in."""

    architecture: Architecture
    weights: Weights
    arithmetic: Arithmetic

    @torch.inference_mode()
    def run(self, tokens: Tokens, see: See) -> None:
        """Walk all points in order."""
        x = see(Point("embedding"), self.embedded(tokens))
        for number in range(len(self.architecture.layers)):
            x = self._layer(number, x, tokens, see)
        x = see(Point("final_norm"), self._norm("final_norm", -1, x))
        see(Point("logits"), self._logits(x))

    def embedded(self, tokens: Tokens) -> torch.Tensor:
        """What enters the first layer."""
        rows = self.weights[Part("embedding", -1)][tokens.ids].to(self.arithmetic.dtype)
        return rows * self.architecture.embedding_multiplier

    def _layer(self, number: int, x: torch.Tensor, tokens: Tokens, see: See) -> torch.Tensor:
        layer = self.architecture.layers[number]

        def at(kind: str, values: torch.Tensor) -> torch.Tensor:
            return see(Point(kind, number), values)

        entering = x
        x = at("attn_norm", self._norm("attn_norm", number, x))
        x = at("o", self._linear("o", number, at("attention", self._attention(number, x, tokens, see))))
        if layer.post_attn_norm is not None:
            x = at("post_attn_norm", self._norm("post_attn_norm", number, x))
        x = entering = at("attn_residual", entering + x * layer.residual_multiplier)
        x = at("mlp_norm", self._norm("mlp_norm", number, x))
        x = self._mixture(number, x, see) if layer.mixture is not None else self._mlp(number, x, see)
        if layer.post_mlp_norm is not None:
            x = at("post_mlp_norm", self._norm("post_mlp_norm", number, x))
        return at("residual", entering + x * layer.residual_multiplier)

    def _attention(self, number: int, x: torch.Tensor, tokens: Tokens, see: See) -> torch.Tensor:
        attention = self.architecture.layers[number].attention
        found = {kind: see(Point(kind, number), self._linear(kind, number, x)) for kind in ("q", "k", "v")}
        for kind in ("q", "k"):
            if attention.norm is not None:
                found[kind] = see(Point(f"{kind}_norm", number), self._norm(f"{kind}_norm", number, found[kind]))
        for kind in ("q", "k"):
            if attention.rotation is not None:
                turned = rotated(found[kind], attention.rotation, attention.channels, tokens.positions)
                found[kind] = see(Point(f"{kind}_rope", number), turned)
        k, v = (self.arithmetic.cached(found[kind]) for kind in ("k", "v"))
        return attended(found["q"], k, v, attention, tokens)

    def _mlp(self, number: int, x: torch.Tensor, see: See) -> torch.Tensor:
        gate = None
        if Part("gate", number) in self.weights:
            gate = see(Point("gate", number), self._linear("gate", number, x))
        up = see(Point("up", number), self._linear("up", number, x))
        inner = see(Point("activation", number), activated(gate, up, self.architecture.layers[number].activation))
        return see(Point("down", number), self._linear("down", number, inner))

    def _mixture(self, number: int, x: torch.Tensor, see: See) -> torch.Tensor:
        layer = self.architecture.layers[number]
        assert layer.mixture is not None
        shares = chosen(see(Point("router", number), self._linear("router", number, x)), layer.mixture)
        gate, up, down = (self.weights[Part(kind, number)] for kind in ("gate", "up", "down"))
        return see(Point("expert", number), mixed(x, shares, layer.activation, gate, up, down))

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._linear("logits", -1, x) * self.architecture.logit_multiplier
        cap = self.architecture.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _linear(self, kind: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        bias = self.weights.get(Part(kind, layer, "bias"))
        return linear(self.arithmetic.fed(x), self.weights[Part(kind, layer)], bias)

    def _norm(self, kind: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        norm = self.architecture.norm(kind, layer)
        return normalised(x, norm, self.weights[Part(kind, layer)], self.weights.get(Part(kind, layer, "bias")))
