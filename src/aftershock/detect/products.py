"""Checksums of products of matrices, with thresholds that follow from rounding.

For C = A B, and e a vector of ones, a row's deviation D_i = A_i . (B e) - sum_j C_ij is 0 but for rounding (Huang and
Abraham, IEEE Trans. Computers C-33, 1984). Where A has K columns, B has N and s = B e, its standard deviation is at
most (u: unit roundoffs of sums and of outputs; each rounding within +-u of its result, uniform, hence 1 / sqrt 3)

    sigma_i = [ u_out |C_i|                          outputs rounded when they are stored
              + u_sum sqrt(|B|_F^2 + |s|^2) |A_i|   partial sums that wander, of the product and of A_i . s
              + u_sum (sqrt K + sqrt log2 N) |C_i|   partial sums that grow steadily to C_ij; the tree that adds a row
              + u_sum sqrt 8 |A_i . s|               the two trees that grow to A_i . s
              + u_sum sqrt K |b| ] / sqrt 3          a bias that sums begin at

in Euclidean norms. It is taken that addends come in an order that has nothing to do with their sizes: the sum of the
first m of K is m/K C_ij, plus a wandering part of size |A_i| |B_j| sqrt(m) / K. T_i is `sigmas` of them, the drift of
sums that are cut off, `drift` K |A_i . s|, which has the sign of each sum and so adds up to that of the row, and a
floor for what is too small to be rounded by a relative amount. Outputs that are nearly equal round alike, not
independently: those of a weight with many such rows are added up with signs (`linear_checksum`).
"""

from dataclasses import dataclass, replace
from math import log2, sqrt

import torch

from aftershock.detect.linear_checksum import LinearChecksum
from aftershock.detect.rounding import Rounding

_ROOM = 1 + 2.0**-6
"""By how much stored outputs may exceed their exact norm's bound: four times the unit roundoff of bfloat16."""

_NORMS_FROM = 2.0**-60
"""Values below this may be lost from a norm: their squares underflow in fp32."""


@dataclass(frozen=True)
class Tolerance:
    """A row's threshold as a sum: `inputs` |A_i| + `outputs` |C_i| + `expected` |A_i . s| + `floor`.

    |C_i| never exceeds `norm` |A_i| + `offset` in a clean row (Cauchy and Schwarz), once stored not `room` times that:
    where it does the row is wrong, whatever it adds up to, so that large errors that cancel neither hide nor widen
    their own threshold. Tensors are fp32 and go with rows' norms.
    """

    inputs: torch.Tensor
    outputs: float
    expected: float
    floor: torch.Tensor
    norm: torch.Tensor
    offset: torch.Tensor
    room: float = _ROOM


@dataclass(frozen=True)
class RowCheck:
    """By how much rows' sums deviate from their checksums, and by how much they may: both fp32, shape (...); and, bool,
    whether a row's outputs are `oversized`, larger than its inputs and the weight allow."""

    deviation: torch.Tensor
    threshold: torch.Tensor
    oversized: torch.Tensor

    @property
    def wrong(self) -> torch.Tensor:
        """Bool, shape (...): oversized, the deviation beyond the threshold, or one of them not finite."""
        return ~((self.deviation.abs() <= self.threshold) & (self.threshold < torch.inf)) | self.oversized


def tolerance(checksum: LinearChecksum, rounding: Rounding) -> Tolerance:
    """The tolerance of a linear layer's rows: 0-d tensors, which stay as they are while the weight does."""
    inputs = len(checksum.sums)
    made = _tolerance(checksum.norm, checksum.sums_norm, inputs, checksum.outputs, rounding)
    # |A_i . s| is at most what is expected of the row, bias included, and the bias's own sum.
    of_bias = (
        rounding.sigmas / sqrt(3) * rounding.accumulation * sqrt(inputs) * checksum.bias_norm
        + made.expected * checksum.bias_sum.abs()
    )
    return replace(made, floor=made.floor + of_bias, norm=checksum.norm, offset=checksum.bias_norm)


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
        norm=norm,
        offset=torch.zeros_like(norm),
    )


def _depth(count: int) -> float:
    """Root of the number of levels of the tree that adds `count` numbers."""
    return sqrt(log2(max(count, 2)))


def check_rows(inputs: torch.Tensor, outputs: torch.Tensor, checksum: LinearChecksum, rounding: Rounding) -> RowCheck:
    """Check a linear layer's `outputs`, shape (..., N), for `inputs`, shape (..., K): one check a row."""
    return check_rows_within(inputs, outputs, checksum, tolerance(checksum, rounding))


def check_rows_within(
    inputs: torch.Tensor, outputs: torch.Tensor, checksum: LinearChecksum, allowed: Tolerance
) -> RowCheck:
    """The same with the checksum's `tolerance`, made once for many calls."""
    expected = expected_sums(inputs, checksum.sums) + checksum.bias_sum
    return _compared(expected, inputs, signed(outputs, checksum), allowed)


def signed(outputs: torch.Tensor, checksum: LinearChecksum) -> torch.Tensor:
    """`outputs`, shape (..., N), with the signs that the checksum gives them, or as they are."""
    if checksum.signs is None:
        return outputs
    return torch.mul(outputs, checksum.signs)


def expected_sums(inputs: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """A_i . s in fp32: `inputs` of shape (..., K), `sums` fp32 of a shape that goes with it."""
    return (inputs * sums).sum(-1, dtype=torch.float32)


def _compared(expected: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, allowed: Tolerance) -> RowCheck:
    """Row sums of `outputs`, shape (..., N), against what is `expected` of them, fp32 (...); of `inputs` (..., K)."""
    size, found = _norm(inputs), _norm(outputs)
    largest = allowed.room * (allowed.norm * size + allowed.offset)
    threshold = (
        allowed.inputs * size
        + allowed.outputs * torch.minimum(found, largest)
        + allowed.expected * expected.abs()
        + allowed.floor
    )
    return RowCheck(
        deviation=expected - outputs.sum(-1, dtype=torch.float32),
        threshold=threshold,
        oversized=found > largest + allowed.floor,
    )


def _norm(values: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
    return norm


def check_product(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, rounding: Rounding) -> RowCheck:
    """Check rows of `product`, shape (..., M, N), of `left` (..., M, K) and `right` (..., K, N): attention's two.

    The checksum is made of `right`, so that an error in it is not seen.
    """
    sums = right.sum(-1, dtype=torch.float32)
    norm = torch.linalg.vector_norm(right, dim=(-2, -1), dtype=torch.float32)[..., None]
    sums_norm = _norm(sums)[..., None]
    # The checksum itself is summed in fp32 here: the tree's depth, and its growth, for each of its K sums.
    inputs, outputs = right.shape[-2:]
    summed = norm * (1 + _depth(outputs)), sums_norm * (1 + sqrt(2))
    allowed = replace(_tolerance(*summed, inputs, outputs, rounding), norm=norm)
    return _compared(expected_sums(left, sums.unsqueeze(-2)), left, product, allowed)


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
