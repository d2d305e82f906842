"""One block of a Llama-shaped decoder whose products are checked by the steps between them.

A residual is added, and the product before it checked, by the norm that comes next: in the block after, for the last
product of a block. What waits for that travels in a `Stream`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import torch

from aftershock.detect import LinearChecksum, Rounding
from aftershock.protect.fused import plain_steps
from aftershock.protect.fused.row_parts import (
    UNSEEN,
    Bound,
    GateChecks,
    Kept,
    Made,
    NormChecks,
    Predicted,
    Summed,
    bound,
)

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of positions, (1 or batch, tokens, head size) each, the same in both halves of a head."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries, keys and values, (batch, heads, tokens, head size) each -> (batch, tokens, heads x head size)."""


class Steps(Protocol):
    """`plain_steps`, or `triton_steps` on CUDA."""

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, checks: NormChecks
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Sum, its norm, prediction."""

    def gate(
        self, gates: torch.Tensor, ups: torch.Tensor, checks: GateChecks
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Activated values, prediction, sums of gates and ups."""

    def rotate(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        angles: Angles,
        head: int,
        kept: Kept | None,
        checked: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Turned queries and keys, values, sums of all three."""

    def check_outputs(self, outputs: torch.Tensor, product: Predicted) -> None:
        """Check a product that no step reads."""


def steps_on(device_type: str) -> Steps:
    """The steps for devices of a type: one kernel each on CUDA where triton is installed, else torch's operations."""
    if device_type == "cuda" and find_spec("triton") is not None:
        from aftershock.protect.fused import triton_steps

        return triton_steps
    return plain_steps


@dataclass(frozen=True)
class Block:
    """A block's norms, (columns,) each, and its products as functions of their inputs. `qkv` gives queries, keys and
    values, (batch, tokens, heads x `head`) each, and `gate_up` gates and ups: each of them one product, or several that
    read the same input."""

    first_norm: torch.Tensor
    second_norm: torch.Tensor
    eps: float
    head: int
    qkv: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    o: Callable[[torch.Tensor], torch.Tensor]
    gate_up: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    down: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Guard:
    """What a product's rows are checked against: its weight's checksum, fp32 of shape (inputs,), and its bound."""

    checksum: torch.Tensor
    bound: Bound

    @property
    def strain(self) -> torch.Tensor:
        """The largest |D| / T so far, fp32 0-d: above 1 where a row was wrong."""
        return self.bound.strains.max()

    def reset(self) -> None:
        """Forget what was found."""
        self.bound.strains.fill_(UNSEEN)


def guard(checksum: LinearChecksum, rounding: Rounding) -> Guard:
    """The guard of a linear layer, or of several that read the same input, from the checksum of their weights together.
    Raises InputError as `bound` does."""
    return Guard(checksum.sums, bound(checksum, rounding))


@dataclass(frozen=True)
class BlockGuards:
    """The guards of a block's products, None for one that is not checked."""

    qkv: Guard | None = None
    o: Guard | None = None
    gate_up: Guard | None = None
    down: Guard | None = None


@dataclass(frozen=True)
class Stream:
    """What goes from block to block: the residual, what is still to be added to it, and checks that are still due."""

    residual: torch.Tensor
    delta: torch.Tensor | None = None
    down: Predicted | None = None
    gate_up: Summed | None = None


def run_block(
    steps: Steps, block: Block, guards: BlockGuards, stream: Stream, angles: Angles, kept: Kept | None, attend: Attend
) -> Stream:
    """One block. Checks the products of the block before that are due, and its own but for `gate_up` and `down`."""
    residual, normed, parts = steps.add_norm(
        stream.residual,
        stream.delta,
        block.first_norm,
        block.eps,
        NormChecks(stream.down, stream.gate_up, _checksum(guards.qkv)),
    )
    checked = guards.qkv is not None
    queries, keys, values, sums = steps.rotate(*block.qkv(normed), angles, block.head, kept, checked)
    qkv = _predicted(guards.qkv, parts)
    attended = attend(queries, keys, values)
    made = None if guards.o is None else Made(guards.o.bound, attended, guards.o.checksum)
    residual, normed, parts = steps.add_norm(
        residual,
        block.o(attended),
        block.second_norm,
        block.eps,
        NormChecks(made, _summed(qkv, sums), _checksum(guards.gate_up)),
    )
    gates, ups = block.gate_up(normed)
    gate_up = _predicted(guards.gate_up, parts)
    activated, parts, sums = steps.gate(gates, ups, GateChecks(gate_up is not None, _checksum(guards.down)))
    return Stream(residual, block.down(activated), _predicted(guards.down, parts), _summed(gate_up, sums))


def finish(
    steps: Steps, norm: torch.Tensor, eps: float, stream: Stream, head: Guard | None
) -> tuple[torch.Tensor, Predicted | None]:
    """The last norm's output, with the last checks that are due, and what it predicts of the head's product."""
    _, normed, parts = steps.add_norm(
        stream.residual, stream.delta, norm, eps, NormChecks(stream.down, stream.gate_up, _checksum(head))
    )
    return normed, _predicted(head, parts)


def _checksum(own: Guard | None) -> torch.Tensor | None:
    return None if own is None else own.checksum


def _predicted(own: Guard | None, parts: torch.Tensor | None) -> Predicted | None:
    return None if own is None or parts is None else Predicted(own.bound, parts)


def _summed(predicted: Predicted | None, sums: torch.Tensor | None) -> Summed | None:
    return None if predicted is None or sums is None else Summed(predicted, sums)
