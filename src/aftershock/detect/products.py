"""Checksums of products of matrices, with thresholds that follow from rounding.

For C = A B, and e a vector of ones, a row's deviation D_i = A_i . (B e) - sum_j C_ij is 0 but for rounding (Huang and
Abraham, IEEE Trans. Computers C-33, 1984). Where A has K columns, B has N and s = B e, its standard deviation is at
most (u: unit roundoffs of sums and of outputs; each rounding within +-u of its result, uniform, hence 1 / sqrt 3)

    sigma_i = [ u_out |C_i|                          outputs rounded when they are stored
              + u_out R |A_i|                        equal columns of B: their outputs round alike
              + u_sum sqrt(|B|_F^2 + R^2 + |s|^2) |A_i|   partial sums that wander, of the product and of A_i . s
              + u_sum (sqrt K + sqrt log2 N) |C_i|   partial sums that grow steadily to C_ij; the tree that adds a row
              + u_sum sqrt 8 |A_i . s|               the two trees that grow to A_i . s
              + u_sum sqrt K |b| ] / sqrt 3          a bias that sums begin at

in Euclidean norms, with R^2 = sum_j (m_j - 1) |B_j|^2 over columns that are there m_j times. It is taken that addends
come in an order that has nothing to do with their sizes: the sum of the first m of K is m/K C_ij, plus a wandering part
of size |A_i| |B_j| sqrt(m) / K. T_i is `sigmas` of them, the drift of sums that are cut off, `drift` K |A_i . s|, which
has the sign of each sum and so adds up to that of the row, and a floor for what is too small to be rounded by a
relative amount.
"""

from dataclasses import dataclass
from math import log2, sqrt

import torch

from aftershock.detect.rounding import Rounding

_AT_ONCE = 1 << 22
"""Weights that are held in fp64 at one time."""

_NORMS_FROM = 2.0**-60
"""Values below this may be lost from a norm: their squares underflow in fp32."""


@dataclass(frozen=True)
class LinearChecksum:
    """What a linear layer's outputs are checked against; of its weight W, shape (outputs, inputs), and bias.

    `sums` and `weighted`, shape (inputs,), are W's columns summed, plain and times 1 to `outputs`; `norm` and
    `sums_norm` the norms of W (Frobenius) and of `sums`; `repeated` is R of the module's formula; `bias_sum`,
    `weighted_bias` and `bias_norm` are the bias's. All are fp32 where the weight is, 0-d but for the first two; sums
    were taken in fp64 of the stored words.
    """

    sums: torch.Tensor
    weighted: torch.Tensor
    norm: torch.Tensor
    sums_norm: torch.Tensor
    repeated: torch.Tensor
    bias_sum: torch.Tensor
    weighted_bias: torch.Tensor
    bias_norm: torch.Tensor
    outputs: int


@dataclass(frozen=True)
class Tolerance:
    """A row's threshold as a sum: `inputs` |A_i| + `outputs` |C_i| + `expected` |A_i . s| + `floor`.

    `inputs` and `floor` are fp32 tensors that go with rows' norms.
    """

    inputs: torch.Tensor
    outputs: float
    expected: float
    floor: torch.Tensor


@dataclass(frozen=True)
class RowCheck:
    """By how much rows' sums deviate from their checksums, and by how much they may: both fp32, shape (...)."""

    deviation: torch.Tensor
    threshold: torch.Tensor

    @property
    def wrong(self) -> torch.Tensor:
        """Bool, shape (...): the deviation is beyond the threshold, or one of them is not finite."""
        return ~((self.deviation.abs() <= self.threshold) & (self.threshold < torch.inf))


@torch.no_grad()
def linear_checksum(weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearChecksum:
    """Checksum of a linear layer: `weight` of shape (outputs, inputs), `bias` (outputs,) or None, floating-point."""
    outputs, inputs = weight.shape
    places = torch.arange(1, outputs + 1, dtype=torch.float64, device=weight.device)
    sums, weighted = (torch.zeros(inputs, dtype=torch.float64, device=weight.device) for _ in range(2))
    squares, marks = [], []
    step = max(1, _AT_ONCE // inputs)
    # One number for each row, the same for equal rows; for others it is the same with a chance that can be neglected.
    marker = torch.sin(torch.arange(1, inputs + 1, dtype=torch.float64, device=weight.device))
    for part, some in zip(weight.split(step), places.split(step), strict=True):
        exact = part.double()
        sums += exact.sum(0)
        weighted += some @ exact
        squares.append(exact.square().sum(1))
        marks.append((exact * marker).sum(1))
    of_rows = torch.cat(squares)
    shift = torch.zeros_like(places) if bias is None else bias.double()
    return LinearChecksum(
        sums=sums.float(),
        weighted=weighted.float(),
        norm=of_rows.sum().sqrt().float(),
        sums_norm=torch.linalg.vector_norm(sums).float(),
        repeated=_repeated(torch.cat(marks), shift, of_rows).float(),
        bias_sum=shift.sum().float(),
        weighted_bias=(places @ shift).float(),
        bias_norm=torch.linalg.vector_norm(shift).float(),
        outputs=outputs,
    )


def _repeated(marks: torch.Tensor, bias: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    _, which, counts = torch.stack([marks, bias], 1).unique(dim=0, return_inverse=True, return_counts=True)
    return ((counts[which] - 1) * squares).sum().sqrt()


def tolerance(checksum: LinearChecksum, rounding: Rounding) -> Tolerance:
    """The tolerance of a linear layer's rows: 0-d tensors, which stay as they are while the weight does."""
    norm = (checksum.norm.square() + checksum.repeated.square()).sqrt()
    made = _tolerance(norm, checksum.sums_norm, len(checksum.sums), checksum.outputs, rounding)
    deviations = rounding.sigmas / sqrt(3)
    from_bias = deviations * rounding.accumulation * sqrt(len(checksum.sums)) * checksum.bias_norm
    return Tolerance(
        inputs=made.inputs + deviations * rounding.output * checksum.repeated,
        outputs=made.outputs,
        expected=made.expected,
        floor=made.floor + from_bias,
    )


def _tolerance(norm: torch.Tensor, sums_norm: torch.Tensor, inputs: int, outputs: int, rounding: Rounding) -> Tolerance:
    deviations = rounding.sigmas / sqrt(3)
    of_sums = deviations * rounding.accumulation
    of_inputs = of_sums * (norm.square() + sums_norm.square()).sqrt()
    of_outputs = deviations * rounding.output + of_sums * (sqrt(inputs) + _depth(outputs))
    smallest = deviations * rounding.output * rounding.smallest + of_outputs * _NORMS_FROM
    return Tolerance(
        inputs=of_inputs,
        outputs=of_outputs,
        expected=of_sums * sqrt(8) + rounding.drift * inputs,
        floor=of_inputs * (sqrt(inputs) * _NORMS_FROM) + sqrt(outputs) * smallest,
    )


def _depth(count: int) -> float:
    """Root of the number of levels of the tree that adds `count` numbers."""
    return sqrt(log2(max(count, 2)))


def check_rows(inputs: torch.Tensor, outputs: torch.Tensor, checksum: LinearChecksum, rounding: Rounding) -> RowCheck:
    """Check a linear layer's `outputs`, shape (..., N), for `inputs`, shape (..., K): one check a row."""
    return compared(
        expected_sums(inputs, checksum.sums) + checksum.bias_sum, inputs, outputs, tolerance(checksum, rounding)
    )


def expected_sums(inputs: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """A_i . s in fp32: `inputs` of shape (..., K), `sums` fp32 of a shape that goes with it."""
    return (inputs * sums).sum(-1, dtype=torch.float32)


def compared(expected: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, allowed: Tolerance) -> RowCheck:
    """Row sums of `outputs`, shape (..., N), against what is `expected` of them, fp32 (...); of `inputs` (..., K)."""
    threshold = (
        allowed.inputs * _norm(inputs)
        + allowed.outputs * _norm(outputs)
        + allowed.expected * expected.abs()
        + allowed.floor
    )
    return RowCheck(expected - outputs.sum(-1, dtype=torch.float32), threshold)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)


def check_product(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, rounding: Rounding) -> RowCheck:
    """Check rows of `product`, shape (..., M, N), of `left` (..., M, K) and `right` (..., K, N): attention's two.

    The checksum is made of `right`, so that an error in it is not seen.
    """
    sums = right.sum(-1, dtype=torch.float32)
    norm = torch.linalg.vector_norm(right, dim=(-2, -1), dtype=torch.float32)[..., None]
    sums_norm = _norm(sums)[..., None]
    # The checksum itself is summed in fp32 here: the tree's depth, and its growth, for each of its K sums.
    allowed = _tolerance(
        norm * (1 + _depth(right.shape[-1])), sums_norm * (1 + sqrt(2)), right.shape[-2], right.shape[-1], rounding
    )
    return compared(expected_sums(left, sums.unsqueeze(-2)), left, product, allowed)


def check_columns(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, rounding: Rounding) -> RowCheck:
    """Check columns of a product as `check_product` checks rows: e^T A B - e^T C, shape (..., N)."""
    return check_product(right.mT, left.mT, product.mT, rounding)


@dataclass(frozen=True)
class TwoSidedCheck:
    """Rows, shape (..., M), and columns, (..., N), of one product."""

    rows: RowCheck
    columns: RowCheck

    @property
    def wrong(self) -> torch.Tensor:
        """Bool, shape (..., M, N): where a wrong row meets a wrong column."""
        return self.rows.wrong.unsqueeze(-1) & self.columns.wrong.unsqueeze(-2)


def check_both_sides(
    left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, rounding: Rounding
) -> TwoSidedCheck:
    """Check rows and columns of a product: a single wrong element is where they meet."""
    return TwoSidedCheck(check_product(left, right, product, rounding), check_columns(left, right, product, rounding))
