"""The passes of a module and the writing of its words, one after the other."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import MethodType
from typing import Any

import torch

_not_compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(torch.compiler.disable, recursive=False)
"""Have a function run as it is, though what it calls may be compiled."""


class Gate:
    """Many passes at a time, or one repair."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passes: Counter[int] = Counter()
        self._is_closed = False

    @contextmanager
    def around(self, module: torch.nn.Module) -> Iterator[None]:
        """Have all passes of a module go through the gate, by way of its `forward`: hooks would not be called where a
        pass is interrupted."""
        own = vars(module).get("forward")

        # Bound to the module, so that a copy of the module computes with its own words.
        @_not_compiled
        @wraps(type(module).forward)
        def forward(bound: torch.nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            with self.passing():
                return type(bound).forward(bound, *args, **kwargs) if own is None else own(*args, **kwargs)

        module.forward = MethodType(forward, module)
        try:
            yield
        finally:
            if own is None:
                del module.forward
            else:
                module.forward = own

    @contextmanager
    def passing(self) -> Iterator[None]:
        """One pass: waits while the gate is closed, but not within another pass of the same thread."""
        thread = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed or thread in self._passes)
            self._passes[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes -= Counter([thread])
                self._changed.notify_all()

    @contextmanager
    def closed(self, given_up: Callable[[], bool]) -> Iterator[bool]:
        """Let no pass begin, and wait until none runs or it is given up (asked at each `wake`): whether none runs."""
        try:
            with self._changed:
                self._is_closed = True
                self._changed.wait_for(lambda: not self._passes or given_up())
                is_free = not self._passes
            yield is_free
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()

    def wake(self) -> None:
        """Have those that wait look again."""
        with self._changed:
            self._changed.notify_all()
