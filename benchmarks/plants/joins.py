"""Decoder layers that join what attention and MLP make to the residual stream otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.plants.places import Layers, decoder_layers, has_four_norms, replace_forward

Half = Literal["attention", "mlp"]
"""The two halves of a decoder layer."""


@dataclass(frozen=True)
class Branch:
    """One half of a layer: the residual stream before it, what its norm made of that, what it made (`raw`) and what
    its second norm, if any (`post`), made of that. Positions have shape (rows or 1, tokens)."""

    residual: torch.Tensor
    normed: torch.Tensor
    raw: torch.Tensor
    post: Callable[[torch.Tensor], torch.Tensor]
    positions: torch.Tensor

    @property
    def made(self) -> torch.Tensor:
        """What is to be added; each reading calls the second norm."""
        return self.post(self.raw)


Join = Callable[..., torch.Tensor]
"""From a branch and named parameters to the residual stream after it."""


def added(branch: Branch) -> torch.Tensor:
    """The right one."""
    return branch.residual + branch.made


def scaled(branch: Branch, factor: float) -> torch.Tensor:
    """The branch times a factor."""
    return branch.residual + factor * branch.made


def residual_lost(branch: Branch) -> torch.Tensor:
    """What was made takes the stream's place."""
    return branch.made


def branch_lost(branch: Branch) -> torch.Tensor:
    """What was made is not added."""
    return branch.residual + torch.zeros_like(branch.made)


def added_twice(branch: Branch, first: int) -> torch.Tensor:
    """From position `first` on, what was made is added twice."""
    return branch.residual + branch.made * (1 + (branch.positions >= first).to(branch.made.dtype))[..., None]


def added_to_normed(branch: Branch) -> torch.Tensor:
    """The stream goes on from after the norm, not from before it."""
    return branch.normed + branch.made


def sum_normed(branch: Branch) -> torch.Tensor:
    """The second norm is taken of the sum, not of the branch."""
    return branch.post(branch.residual + branch.raw)


def previous_token(branch: Branch) -> torch.Tensor:
    """Each token gets what was made for the one before it."""
    made = branch.made
    return branch.residual + torch.cat([made[:, :1], made[:, :-1]], 1)


JOINS: dict[str, Join] = {
    each.__name__: each
    for each in (
        added,
        scaled,
        residual_lost,
        branch_lost,
        added_twice,
        added_to_normed,
        sum_normed,
        previous_token,
    )
}


def change_join(model: Any, half: Half, join: str, layers: Layers = "all", **parameters: Any) -> None:
    """One half of some layers is joined otherwise (`JOINS`)."""
    changed: Join = partial(JOINS[join], **parameters)
    joins = (changed, added) if half == "attention" else (added, changed)
    for layer in decoder_layers(model, layers):
        replace_forward(layer, partial(_layer, layer, *joins))


def run_in_parallel(model: Any, layers: Layers = "all") -> None:
    """MLP and attention of a layer both see the stream as it came in."""
    for layer in decoder_layers(model, layers):
        replace_forward(layer, partial(_parallel, layer))


def _layer(layer: Any, attention: Join, mlp: Join, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    stream = attention(_attended(layer, hidden_states, kwargs))
    return mlp(_fed(layer, stream, kwargs["position_ids"]))


def _parallel(layer: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return added(_attended(layer, hidden_states, kwargs)) + _fed(layer, hidden_states, kwargs["position_ids"]).made


def _attended(layer: Any, stream: torch.Tensor, kwargs: dict[str, Any]) -> Branch:
    normed = layer.input_layernorm(stream)
    made, _ = layer.self_attn(hidden_states=normed, **kwargs)
    post = layer.post_attention_layernorm if has_four_norms(layer) else torch.nn.Identity()
    return Branch(stream, normed, made, post, kwargs["position_ids"])


def _fed(layer: Any, stream: torch.Tensor, positions: torch.Tensor) -> Branch:
    four = has_four_norms(layer)
    normed = (layer.pre_feedforward_layernorm if four else layer.post_attention_layernorm)(stream)
    post = layer.post_feedforward_layernorm if four else torch.nn.Identity()
    return Branch(stream, normed, layer.mlp(normed), post, positions)
