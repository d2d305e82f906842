"""How far a faulty run's logits lie from golden's."""

from dataclasses import dataclass

import torch

from aftershock.replay.executor import ItemRun

MAX_COMPARED_POSITIONS = 8
"""Logits of at most this many answer positions a row, evenly spread, are kept for RMSE and KL."""


@dataclass(frozen=True)
class Distance:
    """How far faulty logits lie from golden ones: RMSE, and mean KL(golden || faulty) in nats."""

    rmse: float
    kl: float


@torch.inference_mode()
def distance(golden: ItemRun, other: ItemRun) -> Distance | None:
    """Distance over all compared positions, in fp32 (RMSE: fragile-parts study, section 3.3).

    None where the two were forced on different texts, which makes positions incomparable.
    """
    if golden.forced != other.forced:
        return None
    squares, divergence, entries, positions = 0.0, 0.0, 0, 0
    for first, second in zip(golden.logits, other.logits, strict=True):
        clean, corrupt = first.float(), second.float()
        squares += float((clean - corrupt).square().sum(dtype=torch.float64))
        divergence += float(
            torch.nn.functional.kl_div(corrupt.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True)
        )
        entries += clean.numel()
        positions += len(clean)
    return Distance((squares / entries) ** 0.5, divergence / positions)


def compared_positions(positions: int) -> list[int]:
    """At most MAX_COMPARED_POSITIONS of so many positions, evenly spread, the first and the last among them."""
    kept = min(positions, MAX_COMPARED_POSITIONS)
    return torch.linspace(0, positions - 1, kept).long().tolist()
