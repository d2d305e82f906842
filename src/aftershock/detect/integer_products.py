"""Checksums of products of integers: exact, as whole numbers modulo 2^32 round nothing."""

import torch

_HALF, _MODULUS = 1 << 31, 1 << 32


def integer_row_deviations(left: torch.Tensor, right: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """By how much rows of `sums`, int32 (..., M, N), deviate from those of `left` times `right`, (..., M, K) by
    (..., K, N), whole numbers within +-127: int64, shape (..., M), taken modulo 2^32 into [-2^31, 2^31).

    0 for every clean row, also where sums overflowed. What is not seen: changes of a row that add up to a multiple of
    2^32, and errors in the operands themselves. A deviation has the sign of expected minus found.
    """
    return integer_deviations_from(left, right.sum(-1, dtype=torch.int64), sums)


def integer_deviations_from(left: torch.Tensor, checksum: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The same against the `checksum` of `right`, int64 (..., K), taken when it was known to be clean: errors in
    `right` since then are seen too."""
    expected = (left.to(torch.int64) * checksum.unsqueeze(-2)).sum(-1)
    difference = expected - sums.sum(-1, dtype=torch.int64)
    return (difference + _HALF) % _MODULUS - _HALF


def integer_column_deviations(left: torch.Tensor, right: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """By how much columns of `sums` deviate: d = e^T A B - e^T C, int64, shape (..., N), as ReaLM's d (DAC'25)."""
    return integer_row_deviations(right.mT, left.mT, sums.mT)
