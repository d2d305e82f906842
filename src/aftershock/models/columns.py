"""Keys and values in fixed columns, so that shapes don't depend on what was cached before."""

import weakref
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from aftershock.errors import ContractError
from aftershock.models.blocks import Pass
from aftershock.numerics import words

States = tuple[torch.Tensor, ...]
"""Keys and values of all layers, one tensor for the layers of each device, in their order: shape (layers, 2, rows,
heads, columns, channels), keys first."""

_SPARE = 32
"""Columns written past a window before it is moved back to the buffer's start."""

_BYTES_AT_ONCE = 2**28
"""Memory of the rows that are put together before they are written to the buffers."""


class _Layer(DynamicLayer):
    """One layer's part of the buffers."""

    def __init__(self, cache: "ColumnCache", number: int) -> None:
        super().__init__()
        # No cycle: the buffers are large, and are to go with their last user.
        self._cache: weakref.ref[ColumnCache] = weakref.ref(cache)
        self._number = number

    @property
    def _owner(self) -> "ColumnCache":
        cache = self._cache()
        assert cache is not None
        return cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._owner.write(self._number, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return min(self._owner.start + query_length, self._owner.window), 0

    def get_seq_length(self) -> int:
        return min(self._owner.start, self._owner.window - 1)


class ColumnCache(Cache):
    """A key-value cache for calls that each say where they write (`seek`).

    A call writes its columns from `start` on and sees the `window` columns that end with its own. It has all rows, or
    its `rows` alone, some of them for others. Columns that nobody wrote are zero, so that masked ones add nothing.
    `devices` are those of the layers.
    """

    def __init__(self, devices: Sequence[torch.device], columns: int, window: int) -> None:
        super().__init__(layers=[_Layer(self, number) for number in range(len(devices))])
        self.start, self.window = 0, window
        self._devices, self._columns = tuple(devices), columns
        self.states: States = ()
        self._views: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._part: Pass | None = None
        self._places: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def of_block(cls, devices: Sequence[torch.device], columns: int) -> "ColumnCache":
        """Room for all columns of a block."""
        return cls(devices, columns, columns)

    @classmethod
    @torch.inference_mode()
    def of_prefixes(cls, devices: Sequence[torch.device], prefixes: Sequence[States], columns: int) -> "ColumnCache":
        """A window of so many columns for calls of one token a row; row r's own ones end with `prefixes[r]`, states
        without the dimension of rows."""
        cache = cls(devices, columns + _SPARE, columns)
        like = prefixes[0][0]
        cache._allocate(len(prefixes), like.shape[2], like.shape[4], like.dtype)
        alike: dict[int, list[int]] = {}
        for row, states in enumerate(prefixes):
            alike.setdefault(states[0].shape[3], []).append(row)
        for length, found in alike.items():
            # A large buffer takes every copy in many parts, so there had better be few of them.
            some = max(1, _BYTES_AT_ONCE // sum(states.nbytes for states in prefixes[found[0]]))
            for rows in (found[begin : begin + some] for begin in range(0, len(found), some)):
                for number, buffer in enumerate(cache.states):
                    own = torch.stack([prefixes[row][number] for row in rows], dim=2)
                    buffer[:, :, rows, :, columns - length : columns] = own
        cache.start = columns
        return cache

    def seek(self, call: Pass) -> None:
        """This call comes next."""
        self.start, self._part = call.start, None if call.whole else call
        self._places.clear()

    def step(self) -> None:
        """After a call of one token: the next one follows it; where the buffer ends, the window moves back first."""
        self.start += 1
        if self.start == self._columns:
            kept = self.window - 1
            # Layer by layer: a copy of everything could be too large.
            for layer in (layer for buffer in self.states for layer in buffer):
                layer[..., :kept, :] = layer[..., self.start - kept : self.start, :].clone()
            self.start = kept

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a call's keys and values, shape (rows, heads, columns, channels); those that it sees."""
        part = self._part
        if not self.states:
            self._allocate(len(keys) if part is None else part.block.rows, keys.shape[1], keys.shape[3], keys.dtype)
        stop = self.start + keys.shape[2]
        begin = max(0, stop - self.window)
        own = self._views[layer]
        if keys.shape[1::2] != own[0].shape[1::2] or values.shape[1::2] != own[1].shape[1::2]:
            raise ContractError(
                f"layer {layer} has keys or values of shape {tuple(keys.shape)}, {tuple(values.shape)}, unlike the "
                "layers before it: such models run with plain `generate` only"
            )
        if part is None:
            own[0][:, :, self.start : stop] = keys
            own[1][:, :, self.start : stop] = values
            return own[0][:, :, begin:stop], own[1][:, :, begin:stop]
        filled, places, rows = self._rows_on(keys.device, part)
        own[0][filled, :, self.start : stop] = keys[places]
        own[1][filled, :, self.start : stop] = values[places]
        if begin == self.start:
            return keys, values
        return own[0][rows, :, begin:stop], own[1][rows, :, begin:stop]

    def _rows_on(self, device: torch.device, part: Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows that a call fills, the place of the row that runs for each, and the rows that run."""
        if device not in self._places:
            found = part.filled, part.runner[part.filled], part.running
            self._places[device] = (found[0].to(device), found[1].to(device), found[2].to(device))
        return self._places[device]

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, shape (rows, heads, columns, channels), from the buffers' first column on."""
        return self._views[layer]

    @torch.inference_mode()
    def put(self, states: States, rows: int, first: int, start: int, stop: int) -> None:
        """Write columns [start, stop) of the layers from `first` on; `rows`, a multiple of the states' own, hold them
        over and over."""
        if not self.states:
            like = states[0]
            self._allocate(rows, like.shape[3], like.shape[5], like.dtype)
        begin = 0
        for buffer, theirs in zip(self.states, states, strict=True):
            skipped = max(0, first - begin)
            begin += len(buffer)
            own = theirs[skipped:, :, :, :, start:stop]
            buffer[skipped:, :, :, :, start:stop] = own.repeat(1, 1, rows // theirs.shape[2], 1, 1, 1)

    def holds(self, states: States, layers: range, start: int, stop: int) -> bool:
        """Whether columns [start, stop) of some layers are `states`' own to the bit, in as many rows as those have."""
        begin = 0
        for buffer, theirs in zip(self.states, states, strict=True):
            some = slice(max(0, layers.start - begin), max(0, layers.stop - begin))
            begin += len(buffer)
            own = buffer[some, :, : theirs.shape[2], :, start:stop]
            if not torch.equal(words(own), words(theirs[some, :, :, :, start:stop])):
                return False
        return True

    def _allocate(self, rows: int, heads: int, channels: int, dtype: torch.dtype) -> None:
        self.states = tuple(
            torch.zeros((len(list(own)), 2, rows, heads, self._columns, channels), dtype=dtype, device=device)
            for device, own in groupby(self._devices)
        )
        self._views = [(layer[0], layer[1]) for buffer in self.states for layer in buffer]
