"""The three kinds of product that a model computes: by a linear module, in integers, and in attention."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.detect import (
    changed_column,
    check_product,
    check_rows_within,
    column_word_sums,
    integer_deviations_from,
    integer_row_deviations,
    linear_checksum,
    put_back,
    rounding_of,
    tolerance,
)
from aftershock.models import exact_sums, integer_product
from aftershock.protect.guards import Inputs

Mend = Callable[[], bool]


class KeptWords:
    """Sums of a weight's words as they are now, which tell a changed word to the bit; `elsewhere` puts back what they
    can't, two words of one column."""

    def __init__(self, weight: torch.Tensor, elsewhere: Mend) -> None:
        """`weight`: shape (outputs, inputs), a view of the parameter's own words."""
        self._weight, self._elsewhere = weight, elsewhere
        self._sums = column_word_sums(weight)

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        return self._sums.nbytes

    def mend(self) -> bool:
        """Put changed words back, all of them where they can be told; whether any were."""
        differing = (column_word_sums(self._weight) != self._sums).any(1).nonzero()[:, 0].tolist()
        changes = [changed_column(self._weight, column, self._sums) for column in differing]
        own = [put_back(self._weight, change) for change in changes if change is not None]
        return (bool(own) and all(own)) or self._elsewhere() or any(own)


class LinearProduct:
    """Y = X W^T + b of a linear module in floating point, against the checksum of its weight as it is now."""

    def __init__(self, module: torch.nn.Module, mend: Mend) -> None:
        """Raises InputError for a dtype that has no threshold."""
        linear: Any = module
        weight: torch.Tensor = linear.weight.detach()
        outputs_first = weight.T if isinstance(module, Conv1D) else weight
        self._module, self._kept = module, KeptWords(outputs_first, mend)
        self._checksum = linear_checksum(outputs_first, linear.bias)
        self._allowed = tolerance(self._checksum, rounding_of(weight.dtype, weight.device.type))

    @property
    def nbytes(self) -> int:
        """Memory of what is kept of the weight."""
        return self._kept.nbytes + self._checksum.nbytes

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As `Product` says."""
        return check_rows_within(inputs[0], output, self._checksum, self._allowed).wrong

    def again(self, inputs: Inputs) -> torch.Tensor:
        """As `Product` says."""
        product: torch.Tensor = self._module.forward(inputs[0])
        return product

    def mend(self) -> bool:
        """As `Product` says."""
        return self._kept.mend()


class LinearSums:
    """The int32 sums of a linear map in integers, against the sums of its weight's columns as they are now: exact."""

    def __init__(self, weight: torch.Tensor, mend: Mend) -> None:
        """`weight`: int8, shape (outputs, inputs)."""
        self._kept = KeptWords(weight, mend)
        self._checksum = weight.sum(0, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept of the weight."""
        return self._kept.nbytes + self._checksum.nbytes

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As `Product` says."""
        _, left, _ = inputs
        return integer_deviations_from(left, self._checksum, output) != 0

    def again(self, inputs: Inputs) -> torch.Tensor:
        """As `Product` says."""
        _, left, right = inputs
        return integer_product(left, right)

    def mend(self) -> bool:
        """As `Product` says."""
        return self._kept.mend()


class AttentionSums:
    """The int32 sums of a product of attention in integers, against those of its own right operand: exact."""

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As `Product` says."""
        _, left, right = inputs
        return integer_row_deviations(left, right, output) != 0

    def again(self, inputs: Inputs) -> torch.Tensor:
        """As `Product` says."""
        _, left, right = inputs
        return exact_sums(left, right)

    def mend(self) -> bool:
        """Nothing is kept of what attention multiplies."""
        return False


class AttentionProduct:
    """A product of attention in floating point, against the sums of its own right operand."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """Raises InputError for a dtype that has no threshold."""
        self._rounding = rounding_of(dtype, device.type)

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As `Product` says."""
        left, right = inputs
        return check_product(left, right, output, self._rounding).wrong

    def again(self, inputs: Inputs) -> torch.Tensor:
        """As `Product` says."""
        left, right = inputs
        # Not as `torch.matmul`, for which others may watch.
        product: torch.Tensor = left @ right
        return product

    def mend(self) -> bool:
        """Nothing is kept of what attention multiplies."""
        return False
