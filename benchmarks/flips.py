"""Every stored word of a model, and independent flips of their bits, sampled sparsely."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from aftershock.faults import distinct
from aftershock.models import LoadedModel
from aftershock.numerics import NumberFormat, words

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """The words of one parameter, flat, and the live values that come of them; where words are scaled, by `scales[i //
    columns]`."""

    words: torch.Tensor
    live: torch.Tensor
    scales: torch.Tensor | None = None
    columns: int = 1

    def write(self, places: torch.Tensor, stored: torch.Tensor, number: NumberFormat) -> None:
        """Put other words in places of the live values."""
        values = stored.view(number.dtype)
        if self.scales is not None:
            values = (values.float() * self.scales[places // self.columns]).to(self.live.dtype)
        words(self.live)[places] = words(values)


@dataclass(frozen=True, eq=False)
class Memory:
    """All words of a model in one format."""

    number: NumberFormat
    parts: tuple[Part, ...]

    @property
    def ends(self) -> Integers:
        """Where each part ends, counted in words over all of them."""
        return np.cumsum([part.words.numel() for part in self.parts])

    def split(self, places: Integers) -> Iterator[tuple[Part, slice, torch.Tensor]]:
        """The parts that sorted places lie in, which of the places these are, and where in the part."""
        ends = self.ends
        bounds = np.searchsorted(places, [0, *ends])
        for part, end, first, last in zip(self.parts, ends, bounds, bounds[1:], strict=False):
            if last > first:
                begin = int(end) - part.words.numel()
                yield part, slice(int(first), int(last)), torch.from_numpy(places[first:last] - begin)


def memory_of(model: LoadedModel) -> Memory:
    """The words of all parameters, in the model's own format."""
    flat = [parameter.detach().view(-1) for parameter in model.module.parameters()]
    return Memory(model.format, tuple(Part(words(values), values) for values in flat))


def fp8_memory(model: LoadedModel) -> Memory:
    """The 8-bit words of a model that was loaded with an fp8 storage: those of the projections in decoder layers."""
    assert model.stored is not None
    parts: list[Part] = []
    (number,) = {form.fields["quant"].number for form in model.stored.forms.values()}
    assert number is not None
    for name, form in model.stored.forms.items():
        columns = form.elements
        packed = np.asarray(model.stored.blocks(name)).reshape(-1, form.size)
        quants = torch.from_numpy(np.ascontiguousarray(packed[:, :columns])).view(-1)
        scales = torch.from_numpy(np.ascontiguousarray(packed[:, columns:]).view(np.float32)).view(-1)
        parts.append(Part(quants, model.module.get_parameter(name).detach().view(-1), scales, columns))
    return Memory(number, tuple(parts))


@dataclass(frozen=True, eq=False)
class Struck:
    """Words with bits flipped, in order: the copy, the place in the memory, the bits that flip."""

    copy: Integers
    place: Integers
    mask: Integers


def flipped(memory: Memory, rate: float, copies: int, random: np.random.Generator) -> Struck:
    """Independent flips of every bit of so many copies, sampled by their number and then their places."""
    size, bits = int(memory.ends[-1]), memory.number.bits
    counts = random.binomial(size * bits, rate, size=copies)
    flips = [distinct(random, size * bits, int(count)) for count in counts]
    positions = np.concatenate(flips).astype(np.int64)
    word, bit = np.divmod(positions, bits)
    struck, which = np.unique(np.repeat(np.arange(copies), counts) * size + word, return_inverse=True)
    mask = np.zeros(struck.size, dtype=np.int64)
    np.bitwise_or.at(mask, which, 1 << bit)
    copy, place = np.divmod(struck, size)
    return Struck(copy, place, mask)


def corrupted(old: torch.Tensor, mask: Integers) -> torch.Tensor:
    """Words with bits flipped, in their own integer type."""
    return old ^ torch.from_numpy(mask).to(old.dtype)
