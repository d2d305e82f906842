"""One tensor in a live module, and ways to flip bits of it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from aftershock.locate.changes import gather
from aftershock.models import FileWords, LiveWords, ModelWords, TensorWords, live_words
from aftershock.numerics import generator

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def one_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> LiveWords:
    """The words of a module with one random parameter, which holds every kind of word."""
    module = torch.nn.Module()
    values = generator(seed, 0, "one tensor").integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    weight = torch.from_numpy(values.reshape(*shape[:-1], -1)).view(dtype)
    module.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    return live_words(module)


def integers(words: LiveWords) -> torch.Tensor:
    """The tensor as integers of its width: writing to them writes to it."""
    weight = words.tensor("weight")
    return weight.detach().view(INTEGERS[weight.element_size()])


def flip(words: LiveWords, places: Iterable[tuple[int, int]], bit: int) -> None:
    """Flip one bit of the words at some rows and columns."""
    view = integers(words)
    mask = torch.tensor([1 << bit]).to(view.dtype)
    for row, column in places:
        view[row, column] ^= mask[0]


def flip_randomly(words: LiveWords, count: int, seed: int) -> None:
    """Flip some random bits, no word's twice."""
    flat = integers(words).view(-1)
    draws = generator(seed, 0, "flips")
    places = torch.from_numpy(draws.choice(flat.numel(), count, replace=False))
    bits = torch.from_numpy(draws.integers(0, 8 * flat.element_size(), count))
    flat[places] ^= (1 << bits).to(flat.dtype)


def reader(words: ModelWords, tensor: TensorWords):
    return lambda rows, columns: gather(words, tensor, rows, columns)


def as_read(words: ModelWords) -> list[torch.Tensor]:
    """All words of a model, copied."""
    return [words.read(tensor, 0, tensor.rows).clone() for tensor in words.tensors]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def flip_byte(path: Path, offset: int, mask: int) -> None:
    """Flip some bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def flip_word(words: FileWords, name: str, row: int, column: int, bit: int) -> None:
    """Flip one bit of a word of a tensor in a file."""
    tensor = next(tensor for tensor in words.tensors if tensor.name == name)
    file, offset = tensor.place(row, column)
    flip_byte(words.folder / file, offset + bit // 8, 1 << bit % 8)
