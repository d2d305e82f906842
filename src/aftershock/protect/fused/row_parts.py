"""What the steps of a decoder hand on to each other so that every product's rows are checked on the way."""

from dataclasses import dataclass

import torch

from aftershock.detect import LinearChecksum, Rounding, tolerance
from aftershock.errors import InputError

SLOTS = 1024
"""Places that the rows of one check share in its strains."""

UNSEEN = -1.0
"""The strain of a place where no row was checked yet."""


@dataclass(frozen=True)
class Bound:
    """One check's threshold, `inputs` |A| + `outputs` |C| + `expected` |A . s + `bias`| + `floor` for a row of inputs A
    and outputs C, of which |C| is at most `norm` |A| + `offset` once stored, as of `Tolerance`; and where it keeps what
    it found: `strains`, fp32 of shape (SLOTS,), the largest |D| / T so far, above 1 where a row was wrong, UNSEEN where
    there was none. Row r goes to place r modulo SLOTS."""

    strains: torch.Tensor
    inputs: float
    outputs: float
    expected: float
    floor: float
    norm: float
    offset: float
    bias: float


def bound(checksum: LinearChecksum, rounding: Rounding) -> Bound:
    """The bound of a linear layer's rows. Reads its numbers from the device once.

    Raises InputError for a weight whose outputs are added up with signs.
    """
    if checksum.signs is not None:
        raise InputError(
            "many rows of this weight are nearly equal, so its outputs are added up with signs, which steps between "
            "products don't do: check it with `check_rows`"
        )
    allowed = tolerance(checksum, rounding)
    largest = allowed.room * allowed.norm, allowed.room * allowed.offset
    inputs, floor, norm, offset, bias = torch.stack(
        [allowed.inputs, allowed.floor, *largest, checksum.bias_sum]
    ).tolist()
    strains = torch.full((SLOTS,), UNSEEN, dtype=torch.float32, device=checksum.sums.device)
    return Bound(strains, inputs, allowed.outputs, allowed.expected, floor, norm, offset, bias)


@dataclass(frozen=True)
class Made:
    """A product that is checked from its inputs, (rows, inputs), and its weight's checksum, fp32 of shape (inputs,)."""

    bound: Bound
    inputs: torch.Tensor
    checksum: torch.Tensor


@dataclass(frozen=True)
class Predicted:
    """A product whose row sums an earlier step predicted.

    `parts` is fp32 of shape (rows, parts, 2): shares of the input's dot product with the checksum and of its sum of
    squares.
    """

    bound: Bound
    parts: torch.Tensor


@dataclass(frozen=True)
class Summed:
    """A product whose output an earlier step added up: `sums`, fp32 of shape (rows, parts, 2), sums and sums of
    squares."""

    predicted: Predicted
    sums: torch.Tensor


@dataclass(frozen=True)
class NormChecks:
    """What a norm checks: the product that made its `delta`, an `earlier` one; and the checksum of the `next` product,
    fp32 of shape (columns,), whose row sums it predicts."""

    delta: Made | Predicted | None = None
    earlier: Summed | None = None
    next: torch.Tensor | None = None


@dataclass(frozen=True)
class GateChecks:
    """What a gate does for checks: add up its inputs (`sums`), and predict the row sums of the `next` product from its
    checksum."""

    sums: bool = False
    next: torch.Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """A cache of fixed size, keys and values of shape (batch, heads, columns, head size), contiguous, and the column,
    int64 0-d on the same device, from which on a step writes them."""

    keys: torch.Tensor
    values: torch.Tensor
    column: torch.Tensor


def judge(
    dot: torch.Tensor, squares_in: torch.Tensor, total: torch.Tensor, squares_out: torch.Tensor, own: Bound
) -> None:
    """Keep |D| / T of rows in their bound's strains; infinite where it says nothing: NaN, a norm too large for fp32,
    any D where T is 0; and where outputs are larger than inputs and the weight allow.

    All fp32 (rows,): dot products of inputs with the checksum, sums of squares of inputs, sums and sums of squares of
    outputs.
    """
    sums = dot + own.bias
    size = (sums - total).abs()
    found, largest = squares_out.sqrt(), own.norm * squares_in.sqrt() + own.offset
    threshold = (
        own.inputs * squares_in.sqrt()
        + own.outputs * torch.minimum(found, largest)
        + own.expected * sums.abs()
        + own.floor
    )
    told = (
        (size < torch.inf) & (threshold < torch.inf) & ((threshold > 0) | (size == 0)) & (found <= largest + own.floor)
    )
    strain = torch.where(told, size / threshold.where(threshold > 0, 1.0), torch.inf)
    place = torch.arange(len(strain), device=strain.device) % len(own.strains)
    own.strains.scatter_reduce_(0, place, strain, "amax")
