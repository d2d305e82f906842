"""Models whose stored words are struck, and the faults that strike them. Part of `benchmarks.locate`."""

import copy
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from aftershock.locate import Located
from aftershock.models import FileWords, LiveWords, TensorWords, file_words, live_words, load

SPEC = "demo:smollm2-135m"
FORMATS = ("float32", "float16", "bfloat16", "int8", "Q4_1")

Fault = dict[str, dict[int, int]]
"""For each struck tensor the bytes: offset in the tensor, and what is XORed to the byte."""


@dataclass(frozen=True)
class Suspect:
    """A model that faults are put into, and a clean copy of it."""

    words: FileWords | LiveWords
    clean: FileWords | LiveWords

    @property
    def weights(self) -> tuple[TensorWords, ...]:
        """All tensors; not a file's header."""
        return tuple(tensor for tensor in self.words.tensors if tensor.format != "bytes")

    @property
    def matrices(self) -> tuple[TensorWords, ...]:
        """Tensors of two dimensions, the packed ones in a file."""
        packed = [tensor for tensor in self.weights if tensor.format == "Q4_1"]
        return tuple(packed or (tensor for tensor in self.weights if len(tensor.shape) == 2))

    def strike(self, fault: Fault) -> None:
        """XOR a fault into the words; once more undoes it."""
        named = {tensor.name: tensor for tensor in self.words.tensors}
        for name, changes in fault.items():
            if isinstance(self.words, LiveWords):
                held = self.words.tensor(name).detach().view(-1).view(torch.uint8)
                held[torch.tensor(list(changes))] ^= torch.tensor(list(changes.values()), dtype=torch.uint8)
            else:
                for offset, mask in changes.items():
                    _xor(self.words, named[name], offset, mask)


def _xor(words: FileWords, tensor: TensorWords, offset: int, mask: int) -> None:
    place, inside = divmod(offset, tensor.width)
    name, begin = tensor.place(*divmod(place, tensor.columns))
    with (words.folder / name).open("r+b") as file:
        file.seek(begin + inside)
        byte = file.read(1)[0]
        file.seek(begin + inside)
        file.write(bytes([byte ^ mask]))


def fault_of(flips: Iterable[tuple[TensorWords, int]]) -> Fault:
    """The fault that flips bits, each by its tensor and its number there."""
    fault: Fault = defaultdict(lambda: defaultdict(int))
    for tensor, number in flips:
        fault[tensor.name][number // 8] ^= 1 << number % 8
    return {name: dict(changes) for name, changes in fault.items()}


def as_fault(located: Located) -> Fault:
    """The fault that located changes tell of."""
    return fault_of(
        (changes.tensor, 8 * changes.tensor.width * (row * changes.tensor.columns + column) + bit)
        for changes in located.changes
        for row, column, own in zip(changes.rows.tolist(), changes.columns.tolist(), changes.bits, strict=True)
        for bit in own
    )


@contextmanager
def suspect(form: str) -> Iterator[Suspect]:
    """SmolLM2-135M in a format, and its clean copy: live modules, or as Q4_1 two copies of the file."""
    if form != "Q4_1":
        module: torch.nn.Module = load(SPEC, "bfloat16" if form == "int8" else form).module
        module = int8_words(module) if form == "int8" else module
        yield Suspect(live_words(module), live_words(copy.deepcopy(module)))
        return
    source = file_words(SPEC)
    with TemporaryDirectory() as folder:
        copies = [Path(folder) / which for which in ("suspect", "clean")]
        for each in copies:
            each.mkdir()
            for file in source.files:
                shutil.copyfile(source.folder / file, each / file)
        yield Suspect(*(FileWords(each, source.files, source.tensors) for each in copies))


def int8_words(module: torch.nn.Module) -> torch.nn.Module:
    """The projections of a model as int8 words with one fp32 scale a row, in a plain module."""
    holder = torch.nn.Module()
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().float()
            scales = weight.abs().amax(1, keepdim=True) / 127
            plain = name.replace(".", "_")
            holder.register_buffer(plain, (weight / scales).round().to(torch.int8))
            holder.register_buffer(f"{plain}_scales", scales)
    return holder


def single(tensors: tuple[TensorWords, ...], number: int, draw: np.random.Generator) -> Fault:
    """One bit, word and bit uniform, of the tensor whose turn it is."""
    tensor = tensors[number % len(tensors)]
    return fault_of([(tensor, int(draw.integers(8 * tensor.size)))])


def several(tensors: tuple[TensorWords, ...], count: int, draw: np.random.Generator) -> Fault:
    """So many bits, uniform over all words."""
    ends = np.cumsum([8 * tensor.size for tensor in tensors])
    numbers = np.unique(draw.integers(ends[-1], size=2 * count))
    chosen = draw.choice(numbers, count, replace=False)
    owners = np.searchsorted(ends, chosen, side="right")
    return fault_of(
        (tensors[owner], int(number - (ends[owner - 1] if owner else 0)))
        for owner, number in zip(owners.tolist(), chosen.tolist(), strict=True)
    )


def line(_: Suspect, tensor: TensorWords, draw: np.random.Generator) -> Fault:
    """Random bytes in one line of 64."""
    begin = 64 * int(draw.integers(tensor.size // 64))
    return {tensor.name: {begin + byte: int(draw.integers(1, 256)) for byte in range(64)}}


def stuck_column(suspect: Suspect, tensor: TensorWords, draw: np.random.Generator) -> Fault:
    """One bit of one column of words stuck in all rows, at the value that fewer of them have."""
    column, bit = int(draw.integers(tensor.columns)), int(draw.integers(8 * tensor.width))
    set_there = suspect.clean.read(tensor, 0, tensor.rows)[:, column].long() >> bit & 1
    rows = torch.nonzero(set_there != (set_there.double().mean() < 0.5)).flatten().tolist()
    return fault_of((tensor, 8 * tensor.width * (row * tensor.columns + column) + bit) for row in rows)


def signs(_: Suspect, tensor: TensorWords, draw: np.random.Generator) -> Fault:
    """The uppermost bits of 8 words."""
    words = draw.choice(tensor.size // tensor.width, 8, replace=False).tolist()
    return fault_of((tensor, 8 * tensor.width * (word + 1) - 1) for word in words)


def in_range(suspect: Suspect, tensor: TensorWords, draw: np.random.Generator) -> Fault:
    """One bit of each of 8 weights that leaves them in the tensor's range: in a word of bf16 the upper mantissa bit of
    weights at most half the largest, in a block of Q4_1 any bit of a code."""
    if tensor.format == "Q4_1":
        blocks = draw.choice(tensor.size // 20, 8, replace=False).tolist()
        return fault_of((tensor, 160 * block + int(draw.integers(32, 160))) for block in blocks)
    sizes = suspect.clean.read(tensor, 0, tensor.rows).view(torch.bfloat16).abs().flatten()
    small = torch.nonzero(sizes <= sizes.max() / 2).flatten()
    chosen = draw.choice(len(small), 8, replace=False).tolist()
    return fault_of((tensor, 16 * int(small[place]) + 6) for place in chosen)


def scales(_: Suspect, tensor: TensorWords, draw: np.random.Generator) -> Fault:
    """One exponent bit of the scale of each of 8 blocks of Q4_1."""
    blocks = draw.choice(tensor.size // 20, 8, replace=False).tolist()
    return fault_of((tensor, 160 * block + int(draw.integers(10, 15))) for block in blocks)


THREATS = {
    "bfloat16": {
        "64-byte line": line,
        "stuck bit of a column": stuck_column,
        "8 sign bits": signs,
        "8 flips in range": in_range,
    },
    "Q4_1": {
        "64-byte line": line,
        "stuck bit of a column": stuck_column,
        "8 flips in range": in_range,
        "8 scales": scales,
    },
}
"""Cases by format."""
