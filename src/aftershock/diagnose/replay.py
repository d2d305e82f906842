"""Forced replay: every component judged alone, on the inputs that it had in the target.

The replica walks over the target's tokens. At each point that the target shows, its value is compared with the target's
and then replaced by it, so that no error reaches what comes after: a component that deviates is wrong itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from aftershock.diagnose.arithmetic import TRUTH, Arithmetic
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica

LEAST = 1 / 16
"""Deviations of less than so many units in the last place, relative to a token's values, are none."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a target shows of a point: values of some tokens, shape (rows, channels), and the numbers of those tokens
    (None: all of them)."""

    values: torch.Tensor
    rows: torch.Tensor | None = None

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The rows of all tokens' values that are shown."""
        return values if self.rows is None else values[self.rows]

    def into(self, values: torch.Tensor) -> torch.Tensor:
        """All tokens' values with the shown ones in their place, in the type of `values`."""
        own = self.values.to(values.device, values.dtype)
        if self.rows is None:
            return own
        taken = values.clone()
        taken[self.rows] = own
        return taken


Target = Mapping[Point, Shown]


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far a target's values of one point are from the truth, and how far healthy rounding is.

    Sums of squares over channels, fp64, shape (rows,): `error` of target - truth, `noise` of low - truth, `size` of the
    truth. By channel: `channel_error`, `channel_noise`, shape (channels,). `unit` is the relative size of a unit in the
    last place of the target's type.
    """

    point: Point
    error: torch.Tensor
    noise: torch.Tensor
    size: torch.Tensor
    channel_error: torch.Tensor
    channel_noise: torch.Tensor
    unit: float
    rows: torch.Tensor | None = None

    @property
    def ratio(self) -> float:
        """Norm of the error over norm of the noise: 1 for 0/0, infinite for x/0 (Ekka, arXiv 2606.04594)."""
        return _ratio(self.error.sum(), self.noise.sum(), self.size.sum(), self.unit)

    @property
    def ratios(self) -> torch.Tensor:
        """The ratio of every row, fp64, shape (rows,)."""
        least = (LEAST * self.unit) ** 2 * self.size
        found = torch.sqrt(self.error / self.noise)
        found = torch.where(self.noise > 0, found, torch.inf)
        return torch.where(self.error <= torch.maximum(least, self.noise), found.clamp(max=1.0), found).nan_to_num(
            math.inf, math.inf
        )

    @property
    def relative(self) -> float:
        """Norm of the error over norm of the truth."""
        return float(torch.sqrt(self.error.sum() / self.size.sum())) if self.size.sum() > 0 else 0.0


def _ratio(error: torch.Tensor, noise: torch.Tensor, size: torch.Tensor, unit: float) -> float:
    if not torch.isfinite(error):
        return math.inf
    if error <= (LEAST * unit) ** 2 * size:
        return 1.0 if noise == 0 else min(1.0, float(torch.sqrt(error / noise)))
    return math.inf if noise == 0 else float(torch.sqrt(error / noise))


def forced(replica: Replica, tokens: Tokens, target: Target) -> dict[Point, torch.Tensor]:
    """What the replica computes for every shown point out of the target's own values before it: shape (rows,
    channels)."""
    found: dict[Point, torch.Tensor] = {}

    def see(point: Point, values: torch.Tensor) -> torch.Tensor:
        shown = target.get(point)
        if shown is None:
            return values
        found[point] = shown.of(values)
        return shown.into(values)

    replica.run(tokens, see)
    return found


def deviations(replica: Replica, tokens: Tokens, target: Target) -> list[Deviation]:
    """The deviation of every shown point, in call order. `replica` has the target's arithmetic."""
    low = forced(replica, tokens, target)
    found: list[Deviation] = []

    def see(point: Point, values: torch.Tensor) -> torch.Tensor:
        shown = target.get(point)
        if shown is None:
            return values
        found.append(deviation(point, shown, shown.of(values), low.pop(point), replica.arithmetic))
        return shown.into(values)

    replace(replica, arithmetic=TRUTH).run(tokens, see)
    return found


def deviation(point: Point, shown: Shown, truth: torch.Tensor, low: torch.Tensor, arithmetic: Arithmetic) -> Deviation:
    """Compare a target's values with the truth and with healthy rounding. What is not finite on one side alone is an
    infinite error; on both, none."""
    values = shown.values.to(truth.device, truth.dtype)
    error, noise = (_apart(own, truth) for own in (values, low.to(truth.dtype)))
    size = truth.nan_to_num(0.0, 0.0, 0.0).square()
    return Deviation(
        point=point,
        error=error.sum(-1),
        noise=noise.sum(-1),
        size=size.sum(-1),
        channel_error=error.sum(0),
        channel_noise=noise.sum(0),
        unit=torch.finfo(arithmetic.dtype).eps,
        rows=shown.rows,
    )


def _apart(values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    squares = (values - truth).square()
    alike = torch.isfinite(values) == torch.isfinite(truth)
    return torch.where(torch.isfinite(squares), squares, torch.where(alike, 0.0, torch.inf))
