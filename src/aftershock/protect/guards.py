"""Forward hooks that look at what one module made, and may give something else in its place."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from aftershock.detect import Bounds, bounds_of, clamped, outside
from aftershock.hardware import Scheme, SystolicArray
from aftershock.models import output_tensor
from aftershock.numerics import words
from aftershock.protect.configs import Action, Limit
from aftershock.protect.passes import Alarm, Passes
from aftershock.protect.tally import CorruptionError, Event, Tally
from aftershock.protect.tiles import recover

Module = torch.nn.Module
Inputs = Sequence[Any]


class Product(Protocol):
    """How the rows of a product are checked, and how it is computed once more."""

    def wrong(self, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """Which rows of an output (..., rows, columns) are wrong, bool (..., rows)."""
        ...

    def again(self, inputs: Inputs) -> torch.Tensor:
        """The product computed once more, in the same shapes, without hooks."""
        ...

    def mend(self) -> bool:
        """Put the clean weight back, from its own sums or from wherever it is kept; whether anything was."""
        ...


class RowGuard:
    """Checks the rows of a product in each call, and does what its action says."""

    def __init__(self, product: Product, action: Action, tally: Tally, events: list[Event], alarm: Alarm) -> None:
        self._product, self._action, self._alarm = product, action, alarm
        self._tally, self._events = tally, events

    def __call__(self, module: Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor | None:
        """As a forward hook: what is to be used in the output's place, None for the output itself."""
        wrong = self._product.wrong(inputs, output)
        self._tally.see(wrong)
        if self._action == "count":
            return None
        if self._action == "recover" and self._alarm.deferred:
            self._alarm.tell(wrong)
            return None
        if not bool(wrong.any()):
            return None
        return self._act(inputs, output, wrong)

    def _act(self, inputs: Inputs, output: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor | None:
        count, site = int(wrong.sum()), self._tally.site
        if self._action == "raise":
            raise CorruptionError(f"{count} rows of {site.module} ({site.component}) are not what its weight makes")
        if self._action != "recover":
            self._note(count, None)
            return output.masked_fill(wrong[..., None], 0) if self._action == "zero" else None
        again = self._product.again(inputs)
        left = bool(self._product.wrong(inputs, again).any())
        if left and self._product.mend():
            # A wrong weight touches rows too little to be told as well: all are taken from the clean one.
            again, wrong = self._product.again(inputs), torch.ones_like(wrong)
            left = bool(self._product.wrong(inputs, again).any())
        self._tally.recomputed(count)
        self._note(count, not left)
        return torch.where(wrong[..., None], again, output)

    def _note(self, count: int, mended: bool | None) -> None:
        self._events.append(Event(self._tally.site, self._tally.protection, count, self._action, mended))


class TileGuard:
    """Checks products of integers tile by tile, and computes those tiles again that a scheme says."""

    def __init__(
        self, product: Product, scheme: Scheme, array: SystolicArray, tally: Tally, events: list[Event]
    ) -> None:
        self._product, self._scheme, self._array = product, scheme, array
        self._tally, self._events = tally, events

    def __call__(self, module: Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor | None:
        """As a forward hook; the tally counts tiles."""
        _, left, right = inputs
        found = recover(output, left, right, lambda: self._product.again(inputs), self._scheme, self._array)
        self._tally.see(torch.from_numpy(found.alarms).to(output.device))
        count = int(found.again.sum())
        if found.alarms.any():
            self._tally.recomputed(count)
            mended = bool((found.again | ~found.corrupted).all())
            self._events.append(Event(self._tally.site, self._scheme.name, int(found.alarms.sum()), "recover", mended))
        return found.sums


class TwiceGuard:
    """Computes a product once more and uses that where the two differ; nothing is read back."""

    def __init__(self, product: Product, tally: Tally) -> None:
        self._product, self._tally = product, tally

    def __call__(self, module: Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """As a forward hook: the second run's output."""
        again = self._product.again(inputs)
        self._tally.see((words(again) != words(output)).any(-1))
        return again


class RangeHook:
    """Values of an output outside bounds, counted and limited; NaN lies outside."""

    def __init__(self, bounds: Bounds, limit: Limit, tally: Tally) -> None:
        self.bounds = bounds
        self._limit, self._tally = limit, tally

    def __call__(self, module: Module, inputs: Inputs, output: Any) -> Any:
        """As a forward hook: the limited output, None where values are only counted."""
        values = output_tensor(output)
        beyond = outside(values, self.bounds)
        self._tally.see(beyond)
        if self._limit == "count":
            return None
        limited = clamped(values, self.bounds) if self._limit == "clamp" else values.masked_fill(beyond, 0)
        return _with_tensor(output, limited)


class FirstTokenHook(RangeHook):
    """The same with bounds that the first pass of a generation sets; `passes` tells whether this pass is one."""

    def __init__(self, bounds: Bounds, factor: float, limit: Limit, tally: Tally, passes: Passes) -> None:
        """`bounds` are where those of each first pass are put."""
        super().__init__(bounds, limit, tally)
        self._factor, self._passes = factor, passes

    def __call__(self, module: Module, inputs: Inputs, output: Any) -> Any:
        """As a forward hook."""
        if not self._passes.first:
            return super().__call__(module, inputs, output)
        values = output_tensor(output)
        found = bounds_of(values).stretched(self._factor)
        known = found.lowest <= found.highest  # without a finite value nothing is known, and nothing is limited
        self.bounds.lowest.copy_(found.lowest.where(known, -torch.inf))
        self.bounds.highest.copy_(found.highest.where(known, torch.inf))
        return _with_tensor(output, torch.where(values.isnan(), torch.zeros_like(values), values))


def _with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """What a module returned, with `tensor` in the place of `output_tensor`'s."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
