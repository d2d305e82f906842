"""How far clean results of a kernel may lie from exact ones: what thresholds of checks are derived from."""

from dataclasses import dataclass, replace

import torch

from aftershock.errors import InputError


@dataclass(frozen=True)
class Rounding:
    """How a kernel for products of matrices rounds.

    `accumulation` is the unit roundoff of its sums, `output` that of what it stores (0 where it stores the sums as
    they are), both relative. `drift` is the share of a sum that is lost for each of its addends, always towards zero:
    tensor cores cut sums off instead of rounding them. Outputs below `smallest` are rounded by an absolute amount.
    A threshold is `sigmas` standard deviations of the rounding errors of a row. Were these independent and without
    bias, a clean row would be called wrong with chance 2 exp(-sigmas^2 / 2) at most, whatever their sizes (each is
    bounded and uniform, hence sub-Gaussian with its own variance): 2.5e-14 for 8; if Gaussian 1.2e-15.
    """

    accumulation: float
    output: float
    drift: float
    smallest: float
    sigmas: float = 8.0

    @property
    def unstored(self) -> "Rounding":
        """The same kernel's, for a check on its sums before they are rounded to the output's format."""
        return replace(self, output=0.0)


_FP32_UNIT = 2.0**-24

_TENSOR_CORE_UNIT = 2.0**-23
"""A sum that is cut off errs by up to a whole last place."""

_TENSOR_CORE_DRIFT = 2.0**-26
"""Measured on an H200 (cuBLAS, bf16 and fp16, 1 to 4,096 rows, 64 to 28,672 positive addends): 1.72 x 2^-28 of the
sum for each addend at most; 2.3 times that."""


def rounding_of(dtype: torch.dtype, device_type: str) -> Rounding:
    """How products with results of type `dtype` round on devices of a type ("cpu" or "cuda"): sums in fp32.

    Raises InputError where no constants are known: fp8, whose sums tensor cores keep in fewer bits than fp32, fp32
    products that torch may compute in fewer bits, and devices that were not calibrated.
    """
    if device_type not in ("cpu", "cuda"):
        raise InputError(f"rounding on devices of type {device_type!r} was not calibrated: check on cpu or cuda")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(
            f"results of type {str(dtype).removeprefix('torch.')} have no rounding threshold: "
            "check products that give float32, float16 or bfloat16 of operands of those types"
        )
    if dtype == torch.float32:
        if torch.get_float32_matmul_precision() != "highest":
            raise InputError(
                "float32 products of less than float32's precision (TF32) have no rounding threshold: "
                'call torch.set_float32_matmul_precision("highest"), or use bfloat16'
            )
        return Rounding(_FP32_UNIT, 0.0, 0.0, torch.finfo(dtype).smallest_normal)
    info = torch.finfo(dtype)
    cores = device_type == "cuda"
    return Rounding(
        accumulation=_TENSOR_CORE_UNIT if cores else _FP32_UNIT,
        output=info.eps / 2,
        drift=_TENSOR_CORE_DRIFT if cores else 0.0,
        smallest=info.smallest_normal,
    )
