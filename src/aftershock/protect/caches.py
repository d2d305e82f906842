"""Key-value caches as they were before a pass, so that it can be run once more."""

from collections.abc import Callable
from typing import Any

from transformers import Cache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from aftershock.errors import InputError
from aftershock.models import ColumnCache

Restore = Callable[[], None]


def rewinding(cache: Cache | None) -> Restore:
    """What takes a cache back to how it is now, after one pass; nothing waits for the device, and no keys or values are
    copied. It raises InputError where that can't be done: where a static sliding window is full, and for caches that
    are not known."""
    if cache is None or isinstance(cache, ColumnCache):  # which writes where it wrote
        return lambda: None
    restores = [_of_layer(layer) for layer in cache.layers]

    def restore() -> None:
        for back in restores:
            back()
        # A cache may make its layers in the first pass.
        for layer in cache.layers[len(restores) :]:
            layer.reset()

    return restore


def _of_layer(layer: Any) -> Restore:
    if type(layer) is StaticSlidingWindowLayer:
        return _of_static_window(layer)
    if type(layer) is StaticLayer:
        return _of_static(layer)
    if type(layer) is DynamicSlidingWindowLayer:
        # Its update makes new tensors; what it lets go of is at most a window.
        before = dict(vars(layer))
        return lambda: vars(layer).update(before)
    if type(layer) is DynamicLayer:
        length = layer.get_seq_length()

        def cut() -> None:
            if length == 0:
                layer.reset()
            else:
                layer.keys, layer.values = (one[..., :length, :] for one in (layer.keys, layer.values))

        return cut
    return lambda: _refuse(f"a cache of {type(layer).__name__}")


def _of_static(layer: Any) -> Restore:
    if not layer.is_initialized:
        reset: Restore = layer.reset
        return reset
    length = layer.cumulative_length.clone()

    def back() -> None:
        layer.cumulative_length.copy_(length)

    return back


def _of_static_window(layer: Any) -> Restore:
    back, length = _of_static(layer), layer.cumulative_length_int

    def restore() -> None:
        if layer.cumulative_length_int > layer.max_cache_len:
            _refuse("a static cache whose sliding window is full")
        back()
        layer.cumulative_length_int = length

    return restore


def _refuse(what: str) -> None:
    raise InputError(f"a pass was wrong, and {what} can't be taken back to before it: generate with a dynamic cache")
