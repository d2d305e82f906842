"""What the tests of fingerprints start from: modules of every kind of tensor, and their words in plain Python."""

import torch

from aftershock.models import LiveWords, TensorWords, live_words

TENSORS = {
    "fp32": torch.linspace(-3, 3, 11 * 7).view(11, 7),
    "fp16": torch.linspace(-3, 3, 15).half().view(3, 5),
    "bf16": torch.linspace(-3, 3, 66 * 65).bfloat16().view(66, 65),
    "int8": (torch.arange(70 * 67) * 37 % 251 - 125).to(torch.int8).view(70, 67),
    "packed": (torch.arange(13) * 29 % 256).to(torch.uint8),
    "fp64": torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3),
    "line": torch.tensor([float("nan"), -0.0, float("inf")]),
    "scalar": torch.tensor(2.5),
    "flag": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 4),
}


def module_of(**tensors: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor.clone())
    return module


def words_of(tensor: torch.Tensor) -> tuple[LiveWords, TensorWords]:
    words = live_words(module_of(tensor=tensor))
    return words, words.tensors[0]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().flatten().view(torch.uint8).numpy().tobytes()


def flip(tensor: torch.Tensor, byte: int, bit: int) -> None:
    """Flip a bit of a contiguous tensor in place."""
    tensor.view(-1).view(torch.uint8)[byte] ^= 1 << bit
