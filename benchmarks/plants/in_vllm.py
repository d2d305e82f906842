"""Errors in a live vLLM model, under the names that the operations on transformers models have.

vLLM has tokens of all requests in one row, projections fused, a norm that adds the residual stream first, a rotation
that is a module, an attention that writes a cache. Torch alone is needed to import this, vLLM to use it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.plants import in_modules
from benchmarks.plants.joins import JOINS, Branch, Half
from benchmarks.plants.places import Forward, Layers, decoder_layers, modules_at, replace_forward
from benchmarks.plants.rotation import ROTATIONS, TURNS, Rotate, Table, by_halves
from benchmarks.plants.vllm_attention import change_sight, change_weighing

_RIGHT_ACTIVATIONS = {"SiluAndMul": in_modules.silu, "GeluAndMul": in_modules.gelu_tanh}


def change_activation(model: Any, name: str, layers: Layers = "all") -> None:
    """Another activation function."""
    for mlp in modules_at(model, "mlp", layers):
        replace_forward(mlp.act_fn, partial(_gated, in_modules.multiplied, in_modules.ACTIVATIONS[name]))


def change_product(model: Any, product: str, layers: Layers = "all", **parameters: Any) -> None:
    """What enters `down` is made otherwise from gate and up."""
    made = partial(in_modules.PRODUCTS[product], **parameters)
    for mlp in modules_at(model, "mlp", layers):
        replace_forward(mlp.act_fn, partial(_gated, made, _RIGHT_ACTIVATIONS[type(mlp.act_fn).__name__]))


def _gated(product: Callable[..., torch.Tensor], activation: Forward, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    return product(gate, up, activation).contiguous()


def change_join(model: Any, half: Half, join: str, layers: Layers = "all", **parameters: Any) -> None:
    """One half of some layers is joined to the residual stream otherwise."""
    chosen = partial(JOINS[join], **parameters)
    if half == "mlp":
        for layer in decoder_layers(model, layers):
            replace_forward(layer, partial(_joined_after, layer.forward, chosen))
        return
    # The norm before the MLP adds what attention made.
    for norm in modules_at(model, "mlp_norm", layers):
        replace_forward(norm, partial(_joined_before, norm.forward, chosen))


def _joined_after(inner: Forward, join: Callable[[Branch], torch.Tensor], positions: torch.Tensor, *args: Any) -> Any:
    made, residual = inner(positions, *args)
    stream = join(Branch(residual, residual, made, torch.nn.Identity(), positions))
    return stream, torch.zeros_like(stream)


def _joined_before(
    inner: Forward, join: Callable[[Branch], torch.Tensor], made: torch.Tensor, residual: torch.Tensor
) -> Any:
    stream = join(Branch(residual, residual, made, torch.nn.Identity(), torch.zeros(len(made), dtype=torch.long)))
    return inner(stream, torch.zeros_like(stream))


class PlantedRotaryEmbedding(torch.nn.Module):
    """Rotates queries and keys, shape (tokens, heads x channels) each, in another way than `right` does."""

    def __init__(self, right: Any, turn: Callable[[Table, torch.Tensor], Table], rotate: Rotate) -> None:
        super().__init__()
        self._channels: int = right.head_size
        self.register_buffer("_right", right.cos_sin_cache, persistent=False)
        self._turn, self._rotate = turn, rotate

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries and keys, new tensors."""
        cached: torch.Tensor = self.get_buffer("_right")
        cosines, sines = cached[positions].to(query.dtype).chunk(2, -1)
        table = (torch.cat((cosines, cosines), -1)[None], torch.cat((sines, sines), -1)[None])
        heads = [states.view(len(states), -1, self._channels).transpose(0, 1)[None] for states in (query, key)]
        turned = self._rotate(*heads, self._turn(table, positions[None]), positions[None])
        rotated, rotated_key = (states[0].transpose(0, 1).flatten(1) for states in turned)
        return rotated, rotated_key


def change_turn(model: Any, turn: str, layers: Layers = "all", **parameters: Any) -> None:
    """Queries and keys are rotated by other angles."""
    for attention in modules_at(model, "self_attention", layers):
        attention.rotary_emb = PlantedRotaryEmbedding(attention.rotary_emb, partial(TURNS[turn], **parameters), _halves)


def change_rotation(model: Any, rotation: str, layers: Layers = "all", **parameters: Any) -> None:
    """Queries and keys are rotated in another way."""
    for attention in modules_at(model, "self_attention", layers):
        rotate = partial(ROTATIONS[rotation], **parameters)
        attention.rotary_emb = PlantedRotaryEmbedding(attention.rotary_emb, lambda table, _: table, rotate)


def _halves(
    query: torch.Tensor, key: torch.Tensor, table: Table, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return by_halves(query, table), by_halves(key, table)


OPERATIONS: Mapping[str, Callable[..., None]] = {
    "output": in_modules.change_output,
    "input": in_modules.change_input,
    "norm": in_modules.change_norm,
    "activation": change_activation,
    "product": change_product,
    "join": change_join,
    "turn": change_turn,
    "rotation": change_rotation,
    "sight": change_sight,
    "weighing": change_weighing,
}
"""Operations on a live vLLM model, by name."""
