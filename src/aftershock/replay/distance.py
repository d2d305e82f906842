"""How far a faulty run's logits lie from golden's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aftershock.replay.executor import Distance, ItemRun

MAX_COMPARED_POSITIONS = 8
"""Logits of at most this many answer positions a row, evenly spread, are kept for RMSE and KL."""

_AT_ONCE = 8
"""Positions whose logits, of all copies of a batch, are held in fp32 at a time: a shape, on which bits depend."""


@dataclass(frozen=True)
class Clean:
    """Golden's logits, made ready to be compared with those of `copies` runs at a time.

    `logits`, shape (positions, vocabulary); `chances`, their softmax, and `sums`, their log-sum-exp as it comes out of
    so many copies, shape (copies, positions), in fp32. `items[p]` is the number of the item that position p belongs to.
    """

    logits: torch.Tensor
    chances: torch.Tensor
    sums: torch.Tensor
    items: torch.Tensor

    @property
    def copies(self) -> int:
        """Runs that are compared at a time."""
        return len(self.sums)


@torch.inference_mode()
def clean(logits: torch.Tensor, items: torch.Tensor, copies: int) -> Clean:
    """Golden's logits, shape (positions, vocabulary), and the item of each position; made ready for so many copies."""
    parts = torch.split(logits, _AT_ONCE)
    return Clean(
        logits,
        torch.cat([part.float().softmax(-1) for part in parts]),
        torch.cat([torch.stack([part.float()] * copies).logsumexp(-1) for part in parts], dim=1),
        items.cpu(),
    )


@torch.inference_mode()
def distances(golden: Clean, logits: Sequence[torch.Tensor]) -> list[tuple[Distance, ...]]:
    """The distance of each item, over all of its positions, in fp32 (RMSE: fragile-parts study, section 3.3), for each
    of `golden.copies` runs; `logits` of each, shape (positions, vocabulary).

    KL(p || q) = sum p (z_p - z_q) + log sum exp z_q - log sum exp z_p, for logits z.
    """
    norms, inner, sums = [], [], []
    for own, chances, *others in zip(
        torch.split(golden.logits, _AT_ONCE),
        torch.split(golden.chances, _AT_ONCE),
        *(torch.split(one, _AT_ONCE) for one in logits),
        strict=True,
    ):
        corrupt = torch.stack(others).float()
        sums.append(corrupt.logsumexp(-1))
        apart = own.float() - corrupt
        norms.append(torch.linalg.vector_norm(apart, dim=-1))
        inner.append(torch.einsum("pv,cpv->cp", chances, apart))
    # Rounding can make it a little less than nothing.
    divergences = (torch.cat(inner, dim=1) + torch.cat(sums, dim=1) - golden.sums).clamp(min=0)
    values = torch.stack([torch.cat(norms, dim=1), divergences], dim=-1).cpu().double()
    values[..., 0].square_()
    counts = golden.items.bincount()
    totals = torch.zeros((len(values), len(counts), 2), dtype=torch.float64).index_add_(1, golden.items, values)
    means = (totals / counts[:, None]).tolist()
    return [tuple(Distance((squares / golden.logits.shape[1]) ** 0.5, kl) for squares, kl in run) for run in means]


def distance(golden: ItemRun, other: ItemRun) -> Distance | None:
    """The distance between two fault-free runs of an item. None where they were forced on different texts, which makes
    positions incomparable."""
    if golden.forced != other.forced:
        return None
    own, theirs = torch.cat(golden.logits), torch.cat(other.logits)
    ((found,),) = distances(clean(own, torch.zeros(len(own), dtype=torch.int64), 1), [theirs])
    return found


def compared_positions(positions: int) -> list[int]:
    """At most MAX_COMPARED_POSITIONS of so many positions, evenly spread, the first and the last among them."""
    kept = min(positions, MAX_COMPARED_POSITIONS)
    return torch.linspace(0, positions - 1, kept).long().tolist()
