"""Keys and values in fixed columns, so that shapes don't depend on what was cached before."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_SPARE = 32
"""Columns written past the window before it is moved back to the buffer's start."""


class _Layer(DynamicLayer):
    """One layer's keys and values: buffers of shape (rows, heads, columns, channels), allocated at the first use.

    A call writes its columns from `start` on and sees the `window` columns that end with its own. Columns that nobody
    wrote are zero, so that masked ones add nothing.
    """

    def __init__(self, columns: int, window: int) -> None:
        super().__init__()
        self.start = 0
        self._columns, self._window = columns, window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], self._columns, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def put(self, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        """Write columns [start, start + the number given)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        stop = start + keys.shape[2]
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.put(key_states, value_states, self.start)
        stop = self.start + key_states.shape[2]
        seen = slice(max(0, stop - self._window), stop)
        return self.keys[:, :, seen], self.values[:, :, seen]

    def move_back(self, kept: int) -> None:
        """The `kept` columns before `start` become the first ones."""
        for buffer in (self.keys, self.values):
            buffer[:, :, :kept] = buffer[:, :, self.start - kept : self.start].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return min(self.start + query_length, self._window), 0

    def get_seq_length(self) -> int:
        return min(self.start, self._window - 1)


class ColumnCache(Cache):
    """A key-value cache for calls that each say where they write (`seek`).

    `whole` holds every column of a block. `window` keeps the last ones only: one token a row is written per call, and
    every call sees as many columns as the last.
    """

    def __init__(self, layers: int, columns: int, window: int) -> None:
        self._own = [_Layer(columns, window) for _ in range(layers)]
        self._columns, self._window = columns, window
        super().__init__(layers=list(self._own))

    @classmethod
    def whole(cls, layers: int, columns: int) -> "ColumnCache":
        """Room for all columns of a block."""
        return cls(layers, columns, columns)

    @classmethod
    def window(cls, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> "ColumnCache":
        """A window of as many columns as each layer's `keys` and `values` (rows, heads, columns, channels) have."""
        columns = keys[0].shape[2]
        cache = cls(len(keys), columns + _SPARE, columns)
        for layer, own, theirs in zip(cache._own, keys, values, strict=True):
            layer.put(own, theirs, 0)
        cache.seek(columns)
        return cache

    @property
    def keys(self) -> tuple[torch.Tensor, ...]:
        """Every layer's keys, shape (rows, heads, columns, channels)."""
        return tuple(layer.keys for layer in self._own)

    @property
    def values(self) -> tuple[torch.Tensor, ...]:
        """Every layer's values, shape (rows, heads, columns, channels)."""
        return tuple(layer.values for layer in self._own)

    @torch.inference_mode()
    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        """Write columns of one layer, as if a call had."""
        self._own[layer].put(keys, values, start)

    def seek(self, start: int) -> None:
        """The next call writes from column `start` on."""
        for layer in self._own:
            layer.start = start

    def step(self) -> None:
        """After a call of one token: the next one follows it; where the buffer ends, the window moves back first."""
        start = self._own[0].start + 1
        self.seek(start)
        if start == self._columns:
            for layer in self._own:
                layer.move_back(self._window - 1)
            self.seek(self._window - 1)
