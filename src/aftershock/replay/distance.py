"""How far a faulty run's logits lie from golden's."""

from dataclasses import dataclass

import torch

from aftershock.replay.executor import Distance, ItemRun

MAX_COMPARED_POSITIONS = 8
"""Logits of at most this many answer positions a row, evenly spread, are kept for RMSE and KL."""

_AT_ONCE = 64
"""Positions whose logits are held in fp32 at a time."""


@dataclass(frozen=True)
class Clean:
    """Golden's logits, made ready to be compared with many others.

    `logits`, shape (positions, vocabulary); `chances`, their softmax, and `sums`, their log-sum-exp, shape
    (positions,), in fp32. `items[p]` is the number of the item that position p belongs to.
    """

    logits: torch.Tensor
    chances: torch.Tensor
    sums: torch.Tensor
    items: torch.Tensor


@torch.inference_mode()
def clean(logits: torch.Tensor, items: torch.Tensor) -> Clean:
    """Golden's logits, shape (positions, vocabulary), and the item of each position."""
    parts = torch.split(logits, _AT_ONCE)
    return Clean(
        logits,
        torch.cat([part.float().softmax(-1) for part in parts]),
        torch.cat([part.float().logsumexp(-1) for part in parts]),
        items.cpu(),
    )


@torch.inference_mode()
def distances(golden: Clean, logits: torch.Tensor) -> tuple[Distance, ...]:
    """The distance of each item, over all of its positions, in fp32 (RMSE: fragile-parts study, section 3.3).

    KL(p || q) = sum p (z_p - z_q) + log sum exp z_q - log sum exp z_p, for logits z.
    """
    found = []
    for own, chances, sums, other in zip(
        torch.split(golden.logits, _AT_ONCE),
        torch.split(golden.chances, _AT_ONCE),
        torch.split(golden.sums, _AT_ONCE),
        torch.split(logits, _AT_ONCE),
        strict=True,
    ):
        corrupt = other.float()
        apart = own.float() - corrupt
        divergence = (chances * apart).sum(-1) + corrupt.logsumexp(-1) - sums
        found.append(torch.stack([apart.square().sum(-1), divergence.clamp(min=0)], dim=-1))
    values = torch.cat(found).cpu().double()
    counts = golden.items.bincount()
    totals = torch.zeros((len(counts), 2), dtype=torch.float64).index_add_(0, golden.items, values)
    means = totals / counts[:, None]
    return tuple(Distance((squares / logits.shape[1]) ** 0.5, kl) for squares, kl in means.tolist())


def distance(golden: ItemRun, other: ItemRun) -> Distance | None:
    """The distance between two fault-free runs of an item. None where they were forced on different texts, which makes
    positions incomparable."""
    if golden.forced != other.forced:
        return None
    own, theirs = torch.cat(golden.logits), torch.cat(other.logits)
    (found,) = distances(clean(own, torch.zeros(len(own), dtype=torch.int64)), theirs)
    return found


def compared_positions(positions: int) -> list[int]:
    """At most MAX_COMPARED_POSITIONS of so many positions, evenly spread, the first and the last among them."""
    kept = min(positions, MAX_COMPARED_POSITIONS)
    return torch.linspace(0, positions - 1, kept).long().tolist()
