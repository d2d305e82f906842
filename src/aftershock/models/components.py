"""What a component is, and where its values lie in stored tensors and module outputs."""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from aftershock.models.attended import CacheSite, HeadSite
from aftershock.numerics import NumberFormat

COMPONENTS: tuple[str, ...] = (
    "embedding",
    "position",
    "q",
    "k",
    "v",
    "kv",
    "qk",
    "softmax",
    "sv",
    "o",
    "qk_norm",
    "gate",
    "up",
    "down",
    "fc1",
    "fc2",
    "router",
    "expert",
    "norm",
    "residual",
    "lm_head",
    "embedding+lm_head",
)
"""The role of a tensor or output, the same word for every architecture, in the order of a forward pass."""


@dataclass(frozen=True)
class Rows:
    """The rows of a fused projection that belong to one component.

    Row i belongs when `offset <= i % period < offset + length`: one block for Phi-3's `[q; k; v]`
    (period = all rows), one block per head for GPT-NeoX's interleaved `query_key_value`.
    """

    offset: int
    length: int
    period: int

    def locate(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the fused tensor for positions 0, 1, ... within the component (int64 arrays, any shape)."""
        block, within = np.divmod(positions, self.length)
        return block * self.period + self.offset + within

    def contains(self, rows: np.ndarray) -> np.ndarray:
        """Whether each row of the fused tensor belongs to the component (bool array)."""
        return (rows % self.period >= self.offset) & (rows % self.period < self.offset + self.length)


@dataclass(frozen=True)
class ParameterSite:
    """One component's share of one stored parameter.

    `shape` is the shape of the share, `stored_shape` of the whole tensor; they differ along `dim` only,
    by `rows`. `layer` is None outside the decoder layers.
    """

    name: str
    component: str
    layer: int | None
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    dim: int
    rows: Rows

    @property
    def numel(self) -> int:
        """Number of stored values of the share."""
        return prod(self.shape)

    def locate(self, flat: np.ndarray) -> np.ndarray:
        """Offsets in the flattened stored tensor for flat positions in the share (int64 arrays)."""
        if self.shape == self.stored_shape:
            return flat
        index = list(np.unravel_index(flat, self.shape))
        index[self.dim] = self.rows.locate(index[self.dim])
        return np.ravel_multi_index(tuple(index), self.stored_shape)


@dataclass(frozen=True)
class ExpertSite(ParameterSite):
    """One expert's share of a parameter, and its `use`: the share of the tokens that go through it."""

    use: float


@dataclass(frozen=True)
class OutputSite:
    """One component's share of one module's output.

    The output holds `channels` values per token. `layout` names the axes of the output tensor:
    `btc` batch, token, channel; `nc` the first two flattened (mixture-of-experts blocks); `bthc` channels
    split in heads; `bhtc` heads before tokens. `rows` picks the component's channels of a fused output and
    `features` is their number.
    """

    module: str
    component: str
    layer: int | None
    features: int
    channels: int
    rows: Rows
    layout: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the share that one token has."""
        return (self.features,)

    @property
    def numel(self) -> int:
        """Number of values of the share that one token has."""
        return self.features

    @property
    def shown_by(self) -> str:
        """The module that returns it."""
        return self.module

    def places_before(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Number of values that all tokens before each of `tokens` have together."""
        return tokens * self.features


@dataclass(frozen=True)
class StoredSite:
    """The words of one field (quants, scales, ...) in the blocks that a parameter share is stored in: `words` of `bits`
    bits for each of its rows, floating-point numbers where `number` is their format."""

    parameter: ParameterSite
    field: str
    words: int
    bits: int
    number: NumberFormat | None

    def bit_class(self, bit: int) -> str:
        """The field and, where its words are floating-point numbers, the bit's class in them."""
        return self.field if self.number is None else f"{self.field} {self.number.bit_class(bit)}"

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.parameter.name

    @property
    def component(self) -> str:
        """Its component."""
        return self.parameter.component

    @property
    def layer(self) -> int | None:
        """Its layer."""
        return self.parameter.layer

    @property
    def rows(self) -> int:
        """Rows of the share: the channels of its module's output, those of one expert after another's."""
        shape = self.parameter.shape
        return shape[1] if self.parameter.dim else prod(shape[:-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, words of a row, bits of a word."""
        return self.rows, self.words, self.bits

    @property
    def numel(self) -> int:
        """Number of stored bits."""
        return prod(self.shape)


@dataclass(frozen=True)
class ComponentMap:
    """Every parameter, every mapped output, everything kept in the key-value cache and made by the attention heads of
    one model. Scores and probabilities are there only where the attention makes them (`eager`), stored words where the
    weights come from a packed format, accumulators (int32 sums of projections and of attention's two products, before
    they are scaled) where the model computes in integers."""

    architecture: str
    layers: int
    parameters: tuple[ParameterSite, ...]
    outputs: tuple[OutputSite, ...]
    cached: tuple[CacheSite, ...]
    heads: tuple[HeadSite, ...]
    stored: tuple[StoredSite, ...] = ()
    accumulators: tuple[OutputSite | HeadSite, ...] = ()
