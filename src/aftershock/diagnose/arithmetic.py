"""The rounding that an engine says it does: what healthy values of it may deviate by."""

from dataclasses import dataclass

import torch

from aftershock.diagnose.architecture import Attention, Rotation
from aftershock.diagnose.functions import Angles, Tokens, angles, attended, attended_among, one_by_one, rotated, softly

_BLOCK, _SUPER_BLOCK = 32, 256
"""Values that share a scale where activations are rounded to 8 bits, as GGUF's Q8_0 does, and Q8_K."""


@dataclass(frozen=True)
class Arithmetic:
    """Values are rounded to `dtype` after each operation, keys and values to `cache` before they are attended to, the
    inputs of linear maps to `activation_bits` in blocks of 32 with one scale, what attention multiplies keys and values
    with to `attention`, the sums of a fused attention that adds values up one by one to `sums`, and what GELU takes and
    gives to `gelu`, where given. Linear maps of the kinds in `super_blocks` have blocks of 256. `angles` are those that
    queries and keys turn by."""

    dtype: torch.dtype
    cache: torch.dtype | None = None
    activation_bits: int | None = None
    attention: torch.dtype | None = None
    sums: torch.dtype | None = None
    gelu: torch.dtype | None = None
    angles: Angles = angles
    super_blocks: frozenset[str] = frozenset()

    def turned(self, values: torch.Tensor, rotation: Rotation, channels: int, positions: torch.Tensor) -> torch.Tensor:
        """`functions.rotated` in this arithmetic."""
        return rotated(values, rotation, channels, positions, self.angles)

    def cached(self, values: torch.Tensor) -> torch.Tensor:
        """Keys or values as attention reads them back."""
        return values if self.cache is None else values.to(self.cache).to(values.dtype)

    def multiplied(self, values: torch.Tensor) -> torch.Tensor:
        """Queries, or the softmax, as attention multiplies keys or values with them."""
        return values if self.attention is None else values.to(self.attention).to(values.dtype)

    def weighed(self, scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What attention makes of scores and values; see `functions.Weigh`."""
        if self.sums is not None:
            return one_by_one(scores, values, self.sums)
        if self.attention is None:
            return softly(scores, values)
        shares = self.multiplied(torch.softmax(scores, -1)[..., : values.shape[1]])
        found: torch.Tensor = shares.to(values.dtype) @ values
        return found

    def attended(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention: Attention, tokens: Tokens
    ) -> torch.Tensor:
        """`functions.attended` in this arithmetic."""
        return attended(self.multiplied(q), self.cached(k), self.cached(v), attention, tokens, self.weighed)

    def attended_among(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention: Attention, counts: torch.Tensor
    ) -> torch.Tensor:
        """`functions.attended_among` in this arithmetic."""
        return attended_among(self.multiplied(q), self.cached(k), self.cached(v), attention, counts, self.weighed)

    def fed(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        """What a linear map of a kind multiplies; shape (tokens, channels)."""
        size = _SUPER_BLOCK if kind in self.super_blocks else _BLOCK
        if self.activation_bits is None or values.shape[-1] % size:
            return values
        blocks = values.reshape(*values.shape[:-1], -1, size)
        scale = blocks.abs().amax(-1, keepdim=True) / (2 ** (self.activation_bits - 1) - 1)
        rounded: torch.Tensor = torch.round(blocks / torch.where(scale == 0, 1, scale)) * scale
        return rounded.flatten(-2)


TRUTH = Arithmetic(torch.float64)
"""What rounding is told from."""
