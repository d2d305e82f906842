"""The three kinds of product that a model computes: by a linear module, in integers, and in attention."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from aftershock.detect import (
    check_product,
    check_rows,
    integer_deviations_from,
    integer_row_deviations,
    linear_checksum,
    rounding_of,
)
from aftershock.models import exact_sums, integer_product
from aftershock.protect.guards import Inputs

Mend = Callable[[], bool]


class LinearProduct:
    """Y = X W^T + b of a linear module in floating point, against the checksum of its weight as it is now."""

    def __init__(self, module: torch.nn.Module, mend: Mend) -> None:
        """Raises InputError for a dtype that has no threshold."""
        self._module, self.mend = module, mend
        linear: Any = module
        weight: torch.Tensor = linear.weight
        outputs_first = weight.T if isinstance(module, Conv1D) else weight
        self._checksum = linear_checksum(outputs_first.detach(), linear.bias)
        self._rounding = rounding_of(weight.dtype, weight.device.type)

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As `Product` says."""
        return check_rows(inputs[0], output, self._checksum, self._rounding).wrong

    def again(self, inputs: Inputs) -> torch.Tensor:
        """As `Product` says."""
        product: torch.Tensor = self._module.forward(inputs[0])
        return product


class LinearSums:
    """The int32 sums of a linear map in integers, against the sums of its weight's columns as they are now: exact."""

    def __init__(self, weight: torch.Tensor, mend: Mend) -> None:
        """`weight`: int8, shape (outputs, inputs)."""
        self.mend = mend
        self._checksum = weight.sum(0, dtype=torch.int64)

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As `Product` says."""
        _, left, _ = inputs
        return integer_deviations_from(left, self._checksum, output) != 0

    def again(self, inputs: Inputs) -> torch.Tensor:
        """As `Product` says."""
        _, left, right = inputs
        return integer_product(left, right)


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
        return torch.matmul(left, right)

    def mend(self) -> bool:
        """Nothing is kept of what attention multiplies."""
        return False
