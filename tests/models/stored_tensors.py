"""Tensors of every kind, and their bytes as they are read."""

import torch

from aftershock.models import ModelWords, TensorWords, parts

TENSORS = {
    "matrix": torch.linspace(-3, 3, 70 * 90).bfloat16().view(70, 90),
    "flat": torch.linspace(-3, 3, 33),
    "codes": torch.arange(77).to(torch.int8).view(7, 11),
    "fp64": torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "nan": torch.tensor([float("nan"), -0.0]),
}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(words: ModelWords, tensor: TensorWords) -> tuple[bytes, bytes]:
    """All bytes of a tensor, and the padding."""
    data = b"".join(raw(rows) for _, rows in parts(words, tensor))
    return data[: tensor.size], data[tensor.size :]
