"""A decoder of Llama 3 8B's shape with random weights: plain, for torch.compile, and with its products checked."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from aftershock.detect import linear_checksum, rounding_of
from aftershock.numerics import generator
from aftershock.protect.fused.decoder_block import (
    Angles,
    Block,
    BlockGuards,
    Guard,
    Steps,
    Stream,
    finish,
    guard,
    run_block,
)
from aftershock.protect.fused.row_parts import Kept

_DRAWN_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int
    hidden: int = 4096
    heads: int = 32
    key_heads: int = 8
    head: int = 128
    intermediate: int = 14336
    vocabulary: int = 128256
    eps: float = 1e-5


class Layer(nn.Module):
    """One block: q, k and v are one product, gate and up too, as engines for serving have it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide = (shape.heads + 2 * shape.key_heads) * shape.head
        self.first_norm = nn.Parameter(torch.ones(shape.hidden))
        self.second_norm = nn.Parameter(torch.ones(shape.hidden))
        self.qkv = nn.Linear(shape.hidden, wide, bias=False)
        self.o = nn.Linear(shape.heads * shape.head, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.shape = shape

    def forward(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        kept_keys: torch.Tensor,
        kept_values: torch.Tensor,
        columns: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A block as plain operations, its last addition left to the next block, so that it can be fused there."""
        shape = self.shape
        residual = residual if delta is None else residual + delta
        normed = rms_norm(residual, (shape.hidden,), self.first_norm, shape.eps)
        queries, keys, values = (one.reshape(*one.shape[:2], -1, shape.head) for one in split(self.qkv(normed), shape))
        queries, keys = (turned(one, cosines, sines).transpose(1, 2) for one in (queries, keys))
        kept_keys.index_copy_(2, columns, keys)
        kept_values.index_copy_(2, columns, values.transpose(1, 2))
        residual = residual + self.o(attend(queries, kept_keys, kept_values))
        gates, ups = self.gate_up(rms_norm(residual, (shape.hidden,), self.second_norm, shape.eps)).chunk(2, -1)
        return residual, self.down(silu(gates) * ups)


class Decoder(nn.Module):
    """Embedding, blocks, norm and head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)


def random_decoder(shape: Shape, device: str, dtype: torch.dtype, seed: int) -> Decoder:
    """Weights with a standard deviation of 0.02, the embedding's 1."""
    with torch.device("meta"):
        made = Decoder(shape).to(dtype)
    made = made.to_empty(device=device)
    made.requires_grad_(False)
    for number, (name, parameter) in enumerate(made.named_parameters()):
        if name.endswith("norm"):
            parameter.fill_(1.0)
        else:
            fill_normal(parameter, 1.0 if "embedding" in name else 0.02, seed, number)
    return made


def fill_normal(tensor: torch.Tensor, deviation: float, seed: int, number: int) -> None:
    """Fill a contiguous tensor with normal values, a function of (seed, number) and its shape."""
    random = generator(seed, number, "values of a Llama-shaped decoder")
    for part in torch.split(tensor.view(-1), _DRAWN_AT_ONCE):
        values = random.standard_normal(part.numel(), dtype=np.float32)
        part.copy_(torch.from_numpy(values).mul_(deviation))


def turned(values: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Values, (batch, tokens, heads, head size), turned by their positions."""
    low, high = values.chunk(2, -1)
    return values * cosines.unsqueeze(2) + torch.cat([-high, low], -1) * sines.unsqueeze(2)


def angles(positions: torch.Tensor, shape: Shape, dtype: torch.dtype) -> Angles:
    """Cosines and sines of `positions`, int64 (tokens,): (1, tokens, head size) each."""
    powers = torch.arange(0, shape.head, 2, device=positions.device, dtype=torch.float64) / shape.head
    turns = positions[:, None] / 500_000.0**powers
    both = torch.cat([turns, turns], -1).unsqueeze(0)
    return both.cos().to(dtype), both.sin().to(dtype)


def split(made: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of one product."""
    keys = shape.key_heads * shape.head
    first, second, third = torch.split(made, [shape.heads * shape.head, keys, keys], dim=-1)
    return first, second, third


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of a whole prompt, or of one new token to all the cache holds: (batch, tokens, channels)."""
    batch, heads, tokens, head = queries.shape
    if tokens > 1:
        made = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        return made.transpose(1, 2).reshape(batch, tokens, heads * head)
    # The heads that share a key are as many queries of one head: each key is read once.
    grouped = queries.reshape(batch, keys.shape[1], heads // keys.shape[1], head)
    return scaled_dot_product_attention(grouped, keys, values).reshape(batch, 1, heads * head)


def block(layer: Any) -> Block:
    """A layer as `run_block` takes it."""

    def gate_up(normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gates, ups = layer.gate_up(normed).chunk(2, -1)
        return gates, ups

    return Block(
        layer.first_norm,
        layer.second_norm,
        layer.shape.eps,
        layer.shape.head,
        lambda normed: split(layer.qkv(normed), layer.shape),
        layer.o,
        gate_up,
        layer.down,
    )


@dataclass(frozen=True)
class Guards:
    """Guards of all blocks and of the head."""

    blocks: tuple[BlockGuards, ...]
    head: Guard | None

    def strains(self) -> dict[str, float]:
        """The largest |D| / T of each product."""
        named = {f"{place}.{name}": one for place, own in enumerate(self.blocks) for name, one in vars(own).items()}
        return {name: float(one.strain) for name, one in (named | {"head": self.head}).items() if one is not None}

    def reset(self) -> None:
        """Forget what was found."""
        for one in (*(each for own in self.blocks for each in vars(own).values()), self.head):
            if one is not None:
                one.reset()


def guards_of(decoder: Decoder, components: tuple[str, ...]) -> Guards:
    """Guards of products by name: qkv, o, gate_up, down, head."""
    rounding = rounding_of(decoder.head.weight.dtype, decoder.head.weight.device.type)

    def made(linear: Any) -> Guard:
        return guard(linear_checksum(linear.weight), rounding)

    blocks = tuple(
        BlockGuards(**{name: made(getattr(layer, name)) for name in components if name != "head"})
        for layer in decoder.layers
    )
    return Guards(blocks, made(decoder.head) if "head" in components else None)


def no_guards(decoder: Decoder) -> Guards:
    """None at all."""
    return Guards(tuple(BlockGuards() for _ in decoder.layers), None)


@dataclass(frozen=True)
class Batch:
    """Tokens, int64 (batch, tokens), their angles, and a cache for each layer."""

    tokens: torch.Tensor
    angles: Angles
    kept: tuple[Kept, ...]


def batch_of(decoder: Decoder, rows: int, tokens: int, context: int, seed: int) -> Batch:
    """Random `tokens` of each of `rows` sequences, the last of a `context`, whose other columns are random too."""
    shape, weight = decoder.shape, decoder.head.weight
    drawn = torch.from_numpy(generator(seed, 0, "tokens of a batch").integers(shape.vocabulary, size=(rows, tokens)))
    column = torch.tensor(context - tokens, device=weight.device)
    size = (2, rows, shape.key_heads, context, shape.head)
    rooms = [torch.empty(size, dtype=weight.dtype, device=weight.device) for _ in range(shape.layers)]
    for number, room in enumerate(rooms):
        fill_normal(room, 1.0, seed, -1 - number)
    positions = torch.arange(context - tokens, context, device=weight.device)
    kept = tuple(Kept(room[0], room[1], column) for room in rooms)
    return Batch(drawn.to(weight.device), angles(positions, shape, weight.dtype), kept)


def next_tokens(logits: torch.Tensor) -> torch.Tensor:
    """The most likely token of each row."""
    return logits.argmax(-1)


def plain_pass(decoder: Decoder, batch: Batch, run: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The next token of each sequence, int64 (batch,); `run` takes a layer and what its `forward` takes."""
    residual, delta = decoder.embedding(batch.tokens), None
    columns = batch.kept[0].column + torch.arange(batch.tokens.shape[1], device=residual.device)
    for layer, kept in zip(decoder.layers, batch.kept, strict=True):
        residual, delta = run(layer, residual, delta, *batch.angles, kept.keys, kept.values, columns)
    last = residual[:, -1] if delta is None else residual[:, -1] + delta[:, -1]
    normed = rms_norm(last, (decoder.shape.hidden,), decoder.norm, decoder.shape.eps)
    return next_tokens(decoder.head(normed))


def checked_pass(steps: Steps, decoder: Decoder, blocks: list[Block], guards: Guards, batch: Batch) -> torch.Tensor:
    """The same with the guards' checks, by the same steps without a guard too."""
    stream = Stream(decoder.embedding(batch.tokens))
    for own, guarded, kept in zip(blocks, guards.blocks, batch.kept, strict=True):
        stream = run_block(steps, own, guarded, stream, batch.angles, kept, attend)
    normed, predicted = finish(steps, decoder.norm, decoder.shape.eps, stream, guards.head)
    last = normed[:, -1].contiguous()
    if predicted is not None:
        rows = predicted.parts.view(*batch.tokens.shape, -1, 2)[:, -1].contiguous()
        predicted = replace(predicted, parts=rows)
    logits = decoder.head(last)
    if predicted is not None:
        steps.check_outputs(logits, predicted)
    return next_tokens(logits)
