"""Operands of linear layers on the scales that checks have to bear."""

from collections.abc import Iterator

import numpy as np
import torch

from aftershock.numerics import generator

SHAPES = ((64, 64), (576, 1536), (4096, 512), (28672, 64), (64, 28672))
"""Inputs and outputs."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))


def normal(random: np.random.Generator, *shape: int) -> torch.Tensor:
    """Drawn from a normal distribution, fp32."""
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


def hard_operands(
    inputs: int, outputs: int, rows: int
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Name, inputs, weight and bias, fp32: within fp16 once rounded, and so are their products."""
    random = generator(0, 0, "hard operands")
    weight, values, bias = normal(random, outputs, inputs) * 0.02, normal(random, rows, inputs), torch.zeros(outputs)
    yield "plain", values, weight, bias
    outlier = values.clone()
    outlier[:, 7] *= 1e4
    yield "an input channel 10,000 times larger", outlier, weight * 0.1, bias
    dominating = weight.clone()
    dominating[5] *= 1e4
    yield "an output that dominates", values * 0.01, dominating, bias
    column = weight * 0.01
    column[:, 7] *= 1e4
    yield "a weight column 10,000 times larger", values, column, bias
    yield "tiny", values * 1e-6, weight, bias
    yield "denormal in fp16", values * 1e-7, weight * 1e-2, bias
    yield "squares underflow", values * 1e-30, weight * 1e-3, bias
    largest = min(20000 / float((values @ weight.T).abs().max()), 60000 / float(values.abs().max()))
    yield "huge", values * largest, weight, bias
    padded = values.clone()
    padded[::2] = 0
    yield "padding", padded, weight, normal(random, outputs)
    yield "a large bias", values, weight, normal(random, outputs) * 100
    yield "all above zero", values.abs(), weight.abs(), bias
    yield "cancelled by the bias", values.abs(), weight.abs(), -(values.abs() @ weight.abs().T).mean(0)
    common = normal(random, 1, inputs) * 0.05
    yield "outputs that are alike", values, common + weight * 1e-4, bias
