"""What is kept of a linear layer's weight, so that its outputs can be checked."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from aftershock.numerics import generator

_AT_ONCE = 1 << 22
"""Weights that are held in fp32 or fp64 at one time."""

_ALIKE = 1 / 8
"""Rows that differ by less than this share of their norm: their outputs can lie within half a place of bfloat16."""

_FEW = 21
"""As many outputs that all err by u |C_ij| stay below a threshold of 8 sqrt(m / 3) u |C_ij|: m = 8^2 / 3."""

_DIRECTIONS = 16
"""Rows that are alike lie on the same side of as many random planes; of others few do."""


@dataclass(frozen=True)
class LinearChecksum:
    """What a linear layer's outputs are checked against; of its weight W, shape (outputs, inputs), and bias.

    `sums`, shape (inputs,), are W's columns summed; `norm` and `sums_norm` the norms of W (Frobenius) and of `sums`;
    `bias_sum` and `bias_norm` are the bias's. All are fp32 where the weight is, 0-d but for the first; sums were taken
    in fp64 of the stored words. `signs`, int8 of shape (outputs,), are 1 and -1: what each output is multiplied by in
    every sum; None where by nothing.
    """

    sums: torch.Tensor
    norm: torch.Tensor
    sums_norm: torch.Tensor
    bias_sum: torch.Tensor
    bias_norm: torch.Tensor
    outputs: int
    signs: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the sums and the signs."""
        return self.sums.nbytes + (0 if self.signs is None else self.signs.nbytes)


@torch.no_grad()
def linear_checksum(weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearChecksum:
    """Checksum of a linear layer: `weight` of shape (outputs, inputs), `bias` (outputs,) or None, floating-point.

    A head's rows for tokens that were never trained are nearly equal, and so are their logits, to the last place:
    thousands of them round the same way. Where more than a few rows are alike, outputs are therefore added up with
    random signs, the same each time.
    """
    outputs, inputs = weight.shape
    signs = _signs(outputs).to(weight.device) if alike_rows(weight) > _FEW else None
    factors = torch.ones(outputs, dtype=torch.float64, device=weight.device) if signs is None else signs.double()
    sums = torch.zeros(inputs, dtype=torch.float64, device=weight.device)
    squares = torch.zeros((), dtype=torch.float64, device=weight.device)
    for exact, own in in_double(weight, factors):
        sums += own @ exact
        squares += exact.square().sum()
    shift = torch.zeros_like(factors) if bias is None else bias.double()
    return LinearChecksum(
        sums=sums.float(),
        norm=squares.sqrt().float(),
        sums_norm=torch.linalg.vector_norm(sums).float(),
        bias_sum=(factors @ shift).float(),
        bias_norm=torch.linalg.vector_norm(shift).float(),
        outputs=outputs,
        signs=signs,
    )


def in_double(weight: torch.Tensor, factors: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A weight's rows in fp64, some at a time, with those of the `factors`, fp64 (outputs,), that are theirs."""
    step = max(1, _AT_ONCE // weight.shape[1])
    pieces = zip(torch.split(weight, step), torch.split(factors, step), strict=True)
    return ((part.double(), own) for part, own in pieces)


def _signs(outputs: int) -> torch.Tensor:
    drawn = generator(0, 0, "signs of outputs").integers(0, 2, outputs)
    return torch.from_numpy(drawn * 2 - 1).to(torch.int8)


def alike_rows(weight: torch.Tensor) -> int:
    """How many rows of a weight, shape (outputs, inputs), have a row beside them that differs by little, rows being
    sorted so that such ones mostly come to lie beside each other. Rows of zeros do not count."""
    outputs, inputs = weight.shape
    if outputs <= _FEW:
        return 0
    step = max(1, _AT_ONCE // inputs)
    drawn = generator(0, 0, "directions between rows").standard_normal((inputs, _DIRECTIONS))
    directions = torch.from_numpy(drawn).float().to(weight.device)
    along = torch.cat([part.float() @ directions for part in torch.split(weight, step)])
    sides = ((along > 0).long() << torch.arange(_DIRECTIONS, device=weight.device)).sum(1)
    order = along[:, 0].argsort(stable=True)
    order = order[sides[order].argsort(stable=True)]
    count = torch.zeros((), dtype=torch.int64, device=weight.device)
    for here, there in zip(torch.split(order[:-1], step), torch.split(order[1:], step), strict=True):
        rows = weight[here].float()
        apart = torch.linalg.vector_norm(rows - weight[there].float(), dim=1)
        count += (apart < _ALIKE * torch.linalg.vector_norm(rows, dim=1)).sum()
    return int(count)
