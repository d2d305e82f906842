"""How a target lays the values of a point out in its tensors: which channels, in what order, times what."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

Grouping = Literal["pass", "request", "all"]
"""The tokens that a transposed tensor holds as one block: those of a pass, of a request, or all."""


@dataclass(frozen=True)
class Transposed:
    """A tensor whose words are in the order (heads, tokens, channels), block by block of tokens."""

    heads: int
    grouping: Grouping


@dataclass(frozen=True)
class Layout:
    """A point's values are `scale` x the tensor's `channels`, one range after another (none: all of them, in order),
    read in the order (heads, tokens, channels) where `transposed`."""

    channels: tuple[range, ...] = ()
    scale: float = 1.0
    transposed: Transposed | None = None

    @property
    def is_plain(self) -> bool:
        """Whether channels are next to each other, in order and as they are: nothing that could hide an error."""
        return self.scale == 1.0 and self.transposed is None and self.is_block

    @property
    def is_block(self) -> bool:
        """Whether the channels are next to each other and in order."""
        return len(self.channels) <= 1 and all(own.step == 1 for own in self.channels)

    @property
    def width(self) -> int:
        """Number of channels; 0 where they are all of the tensor's."""
        return sum(map(len, self.channels))

    def of(self, values: torch.Tensor, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """A point's values out of a tensor, both of shape (rows, channels). `blocks` are the rows of each block of
        tokens, which a transposed tensor alone needs."""
        if self.transposed is not None:
            values = _restored(values, self.transposed.heads, blocks)
        values = self.picked(values)
        return values if self.scale == 1.0 else values * self.scale

    def picked(self, values: torch.Tensor) -> torch.Tensor:
        """The channels alone: a view where they are next to each other."""
        if not self.channels:
            return values
        if len(self.channels) == 1 and self.channels[0].step > 0:
            own = self.channels[0]
            return values[..., own.start : own.stop : own.step]
        index = torch.tensor(list(chain.from_iterable(self.channels)), device=values.device)
        return values[..., index]

    def __str__(self) -> str:
        words = [f"channels {channels_text(self.channels)}"] if self.channels else []
        if self.transposed is not None:
            words.append(f"{self.transposed.heads} heads before the tokens of each {self.transposed.grouping}")
        if self.scale != 1.0:
            words.append(f"times {self.scale:.6g}")
        return ", ".join(words)


PLAIN = Layout()
"""All channels as they are."""


def _restored(values: torch.Tensor, heads: int, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    found = values.clone()
    for rows in (own for own in blocks if len(own)):
        found[rows] = values[rows].reshape(heads, len(rows), -1).transpose(0, 1).flatten(1)
    return found


def channels_text(channels: Sequence[range]) -> str:
    """Ranges as Python writes slices: `0:64, 128:192, 1:64:2`."""
    return ", ".join(
        f"{own.start}:{own.stop}" if own.step == 1 else f"{own.start}:{own.stop}:{own.step}" for own in channels
    )


def parse_channels(text: str) -> tuple[range, ...]:
    """What `channels_text` wrote. Raises ValueError for anything else, and for a negative or no channel."""
    return tuple(_range(part.strip()) for part in text.split(",") if part.strip())


def _range(text: str) -> range:
    ends = text.split(":")
    if len(ends) not in (2, 3):
        raise ValueError(f"{text!r} is no range of channels such as 0:64 or 0:64:2")
    found = range(*map(int, ends))
    if len(found) == 0 or found[0] < 0 or found[-1] < 0:
        raise ValueError(f"{text!r} names channels that no tensor has")
    return found
