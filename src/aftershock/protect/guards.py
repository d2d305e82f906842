"""Forward hooks that look at what one module made, and may give something else in its place."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from aftershock.hardware import Scheme, SystolicArray
from aftershock.models import output_tensor
from aftershock.numerics import words
from aftershock.protect.configs import Action, Limit
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
        """Put the clean weight back from wherever it is kept; whether anything was."""
        ...


class RowGuard:
    """Checks the rows of a product in each call, and does what its action says."""

    def __init__(self, product: Product, action: Action, tally: Tally, events: list[Event]) -> None:
        self._product, self._action = product, action
        self._tally, self._events = tally, events

    def __call__(self, module: Module, inputs: Inputs, output: torch.Tensor) -> torch.Tensor | None:
        """As a forward hook: what is to be used in the output's place, None for the output itself."""
        wrong = self._product.wrong(inputs, output)
        self._tally.see(wrong)
        if self._action == "count" or not bool(wrong.any()):
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
    """Values of an output outside [`low`, `high`] (0-d tensors of its dtype), counted and limited; NaN lies outside."""

    def __init__(self, low: torch.Tensor, high: torch.Tensor, limit: Limit, tally: Tally) -> None:
        self.low, self.high = low, high
        self._limit, self._tally = limit, tally

    def __call__(self, module: Module, inputs: Inputs, output: Any) -> torch.Tensor | None:
        """As a forward hook: the limited output, None where values are only counted."""
        values = output_tensor(output)
        outside = ~((values >= self.low) & (values <= self.high))
        self._tally.see(outside)
        if self._limit == "count":
            return None
        nearest = (
            values.clamp(self.low, self.high).nan_to_num(0.0) if self._limit == "clamp" else torch.zeros_like(values)
        )
        return torch.where(outside, nearest, values)


class FirstTokenHook(RangeHook):
    """The same with bounds that the first pass of a generation sets; `first` tells whether this pass is one.

    Bounds lie `factor` times as far from 0 as the smallest and the largest value, or, where these lie on the other side
    of it, at their factor-th part: FT2 multiplies, which would move such a bound inwards.
    """

    def __init__(
        self, like: torch.Tensor, factor: float, limit: Limit, tally: Tally, first: Callable[[], bool]
    ) -> None:
        super().__init__(torch.full_like(like, -torch.inf), torch.full_like(like, torch.inf), limit, tally)
        self._factor, self._first = factor, first

    def __call__(self, module: Module, inputs: Inputs, output: Any) -> torch.Tensor | None:
        """As a forward hook."""
        if not self._first():
            return super().__call__(module, inputs, output)
        values = output_tensor(output).nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
        low, high, factor = values.amin(), values.amax(), self._factor
        self.low.copy_(torch.where(low < 0, low * factor, low / factor))
        self.high.copy_(torch.where(high > 0, high * factor, high / factor))
        return values
