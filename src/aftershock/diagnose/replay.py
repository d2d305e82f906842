"""Forced replay: every component judged alone, on the inputs that it had in the target.

The replica walks over the target's tokens. At each point that the target shows, its value is compared with the target's
and then replaced by it, so that no error reaches what comes after: a component that deviates is wrong itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from aftershock.diagnose.arithmetic import TRUTH
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import GoOn, Replica

LEAST = 1 / 16
"""Deviations of less than so many units in the last place, relative to a token's values, are none."""

LEAST_WIDE = 32.0
"""The same in fp32 and wider, where implementations of exp, tanh or rsqrt differ by some 1e-6."""


OF_SUMS = ("attn_norm", "mlp_norm", "final_norm")
"""Norms of the residual stream. Kernels that add and normalise at once take the sum as it is before it is rounded, so
that these have the rounding of their input as noise."""

MIXED = ("expert", "mixture")
"""What experts give that a router chose."""

ROUNDED = 0.045
"""Mean square of the relative error of rounding, in squared units in the last place: 1/12, times the mean of 1/m^2 over
significands m from 1 to 2, evenly in the logarithm."""


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

    def at(self, places: torch.Tensor) -> "Shown":
        """Some of the rows alone, by their places."""
        rows = torch.arange(len(self.values), device=self.values.device) if self.rows is None else self.rows
        return Shown(self.values[places], rows[places])


Target = Mapping[Point, Shown]

LOGITS = Point("logits")


@dataclass(frozen=True, eq=False)
class Deviation:
    """How far a target's values of one point are from the truth, and how far healthy rounding is.

    Sums of squares over channels, fp64, shape (rows,): `error` of target - truth, `noise` of low - truth, `size` of the
    truth. By channel: `channel_error`, `channel_noise`, `channel_size`, shape (channels,), sums over rows of a size
    of 1 each. An error of no more than `least`, relative to the size, is none.
    """

    point: Point
    error: torch.Tensor
    noise: torch.Tensor
    size: torch.Tensor
    channel_error: torch.Tensor
    channel_noise: torch.Tensor
    channel_size: torch.Tensor
    least: float
    rows: torch.Tensor | None = None

    @property
    def ratio(self) -> float:
        """Norm of the error over norm of the noise: 1 for 0/0, infinite for x/0 (Ekka, arXiv 2606.04594)."""
        return float(_ratio(self.error.sum(), self.noise.sum(), self.least**2 * self.size.sum()))

    @property
    def ratios(self) -> torch.Tensor:
        """The ratio of every row, fp64, shape (rows,). A row's noise is taken as no less than the mean noise, relative
        to the size, of all rows: few values may happen to be rounded little."""
        return _ratio(self.error, _steadied(self.noise, self.size), self.least**2 * self.size)

    @property
    def channel_ratios(self) -> torch.Tensor:
        """The ratio of every channel, fp64, shape (channels,), steadied as that of rows is."""
        noise, size = _steadied(self.channel_noise, self.channel_size), self.channel_size
        return _ratio(self.channel_error, noise, self.least**2 * size.clamp(min=float(size.mean())))

    def of(self, rows: torch.Tensor) -> "Deviation":
        """The deviation of some of the rows alone, by their places among the rows. Channels stay those of all rows."""
        return replace(
            self,
            error=self.error[rows],
            noise=self.noise[rows],
            size=self.size[rows],
            rows=rows if self.rows is None else self.rows[rows],
        )

    @property
    def relative(self) -> float:
        """Norm of the error over norm of the truth."""
        return float(torch.sqrt(self.error.sum() / self.size.sum())) if self.size.sum() > 0 else 0.0


def _ratio(error: torch.Tensor, noise: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Square root of error over noise, which are squares, as is `least`."""
    found = torch.sqrt(error / torch.where(noise > 0, torch.maximum(noise, least), 0.0))
    return torch.where(error <= torch.maximum(least, noise), found.nan_to_num(1.0).clamp(max=1.0), found)


def _steadied(noise: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    mean = noise.sum() / size.sum().clamp(min=torch.finfo(size.dtype).tiny)
    return torch.maximum(noise, size * mean)


def forced(replica: Replica, tokens: Tokens, target: Target) -> Iterator[tuple[Point, torch.Tensor]]:
    """Every shown point, in call order, with what the replica computes for it out of the target's own values before it:
    shape (rows, channels)."""

    def go_on(point: Point, values: torch.Tensor) -> torch.Tensor:
        return values if point == LOGITS or point not in target else target[point].into(values)

    yield from _shown(replica, tokens, target, go_on)


def free(replica: Replica, tokens: Tokens, target: Target) -> Iterator[tuple[Point, torch.Tensor]]:
    """The same out of the replica's own values before it."""
    yield from _shown(replica, tokens, target, lambda _, values: values)


def _shown(replica: Replica, tokens: Tokens, target: Target, go_on: GoOn) -> Iterator[tuple[Point, torch.Tensor]]:
    ends = target[LOGITS].rows if LOGITS in target else None
    for point, values in replica.walk(tokens, go_on, ends):
        if point in target:
            yield point, values if point == LOGITS else target[point].of(values)


Run = Callable[[Replica, Tokens, Target], Iterator[tuple[Point, torch.Tensor]]]
"""`forced` or `free`."""


def deviations(replica: Replica, tokens: Tokens, target: Target, run: Run = forced) -> list[Deviation]:
    """The deviation of every shown point, in call order. `replica` has the target's arithmetic. No more than a layer's
    values are held beside the target's."""
    exact = replace(replica, arithmetic=TRUTH)
    both = zip(run(replica, tokens, target), run(exact, tokens, target), strict=True)
    return [deviation(replica, target, point, truth, low) for (point, low), (_, truth) in both]


def deviation(replica: Replica, target: Target, point: Point, truth: torch.Tensor, low: torch.Tensor) -> Deviation:
    """Compare a target's values of a point with the truth and with healthy rounding, both of the rows that are shown.
    What is not finite on one side alone is an infinite error; on both, none. Tokens for which two experts tie are left
    out: either may be taken."""
    shown, kept = target[point], _decided(replica, target, point)
    if kept is not None:
        shown, truth, low = shown.at(kept), truth[kept], low[kept]
    values = shown.values.to(truth.device, truth.dtype)
    error, noise = (_apart(own, truth) for own in (values, low.to(truth.dtype)))
    size = truth.nan_to_num(0.0, 0.0, 0.0).square()
    if point.kind in OF_SUMS:
        noise = noise + ROUNDED * torch.finfo(replica.arithmetic.dtype).eps ** 2 * size
    return Deviation(
        point=point,
        error=error.sum(-1),
        noise=noise.sum(-1),
        size=size.sum(-1),
        channel_error=_by_channel(error, size),
        channel_noise=_by_channel(noise, size),
        channel_size=_by_channel(size, size),
        least=_least(replica.arithmetic.dtype),
        rows=shown.rows,
    )


def compared(replica: Replica, target: Target, point: Point) -> Shown:
    """What of a point's values `deviation` compares."""
    kept = _decided(replica, target, point)
    return target[point] if kept is None else target[point].at(kept)


def _decided(replica: Replica, target: Target, point: Point) -> torch.Tensor | None:
    """The rows of a mixture's output, by their places, whose last expert chosen has larger logits than the first one
    left out; None where there are no others."""
    mixture = replica.architecture.layers[point.layer].mixture if point.kind in MIXED else None
    router = target.get(Point("router", point.layer))
    if mixture is None or mixture.chosen >= mixture.experts or router is None or router.rows is not target[point].rows:
        return None
    top = router.values.topk(mixture.chosen + 1, -1).values
    decided = top[:, -2] > top[:, -1]
    return None if decided.all() else decided.nonzero()[:, 0]


def _by_channel(squares: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Sums over rows, each relative to its size: one token of huge values is not all there is."""
    rows = size.sum(-1, keepdim=True)
    return torch.where(rows > 0, squares / rows, 0.0).sum(0)


def _least(dtype: torch.dtype) -> float:
    """The relative deviation that is none."""
    info = torch.finfo(dtype)
    return info.eps * (LEAST if info.bits < 32 else LEAST_WIDE)


def _apart(values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    squares = (values - truth).square()
    alike = torch.isfinite(values) == torch.isfinite(truth)
    return torch.where(torch.isfinite(squares), squares, torch.where(alike, 0.0, torch.inf))
