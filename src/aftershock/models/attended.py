"""What attention keeps in the key-value cache, and what its heads make."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

CachePart = Literal["key", "value"]


@dataclass(frozen=True)
class CacheSite:
    """The keys or values that one layer keeps of every token for its attention: `heads` x `channels` each.

    `module` is the attention that writes and reads them; a token sees itself and those before it, `window` in all (None
    where the attention does not slide).
    """

    module: str
    part: CachePart
    layer: int
    heads: int
    channels: int
    window: int | None
    component: str = "kv"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is kept of a token."""
        return self.heads, self.channels

    @property
    def numel(self) -> int:
        """Number of words kept of a token."""
        return self.heads * self.channels


HeadPart = Literal["score", "probability", "head_output", "qk_accumulator", "sv_accumulator"]
BY_CHANNEL: tuple[HeadPart, ...] = ("head_output", "sv_accumulator")
"""Parts that have channels; of the others there is one for each key."""

_OPERATIONS: dict[HeadPart, str] = {
    "score": "qk",
    "probability": "softmax",
    "head_output": "sv",
    "qk_accumulator": "qk",
    "sv_accumulator": "sv",
}


@dataclass(frozen=True)
class HeadSite:
    """What the heads of one attention make for each token (query), in the order of making.

    `score`: the product of the query and a key, before it is scaled, capped or masked. `probability`: the weight that
    the softmax gives a key, as the second product reads it. `head_output`: the sum of the values so weighted, which `o`
    reads. `qk_accumulator`, `sv_accumulator`: the int32 sums of the two products where they are computed in integers. A
    head has a score and a probability for each token that the query sees, itself and those before it, `window` in all
    (None where the attention does not slide), and `channels` of output.
    """

    module: str
    part: HeadPart
    layer: int
    heads: int
    channels: int
    window: int | None

    @property
    def component(self) -> str:
        """The operation that makes it."""
        return _OPERATIONS[self.part]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is made for a token, and for one key of it where it is made for each."""
        return self.heads, (self.channels if self.part in BY_CHANNEL else 1)

    @property
    def numel(self) -> int:
        """Number of values made for a token, for one key where they are made for each."""
        return prod(self.shape)

    @property
    def shown_by(self) -> str:
        """The module inside the attention that a sum passes through."""
        return f"{self.module}.{self.component}.accumulator"

    def seen(self, query: int) -> range:
        """The tokens that a token sees, all counted from a row's first."""
        return range(0 if self.window is None else max(0, query - self.window + 1), query + 1)

    def places_before(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Number of values that all tokens before each of `tokens` have together, the keys that each sees counted."""
        if self.part in BY_CHANNEL:
            return tokens * self.numel
        growing = tokens if self.window is None else np.minimum(tokens, self.window)
        return self.heads * (growing * (growing + 1) // 2 + (tokens - growing) * (self.window or 0))
