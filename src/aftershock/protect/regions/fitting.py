"""Critical regions of components, fitted by experiment: errors of several sizes and frequencies, and what they cost.

ReaLM's magnitude against frequency (arXiv 2503.24053, Q1.4): `frequency` equal errors in the int32 sums of every
product of a component, in all layers at once, so that MSD = frequency x size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import log2

import numpy as np
import torch

from aftershock.errors import InputError
from aftershock.faults import distinct
from aftershock.hardware import CriticalRegion, SystolicArray, fit_region
from aftershock.models import LoadedModel, text_perplexity
from aftershock.numerics import generator
from aftershock.protect.regions.struck_sums import changed_sums
from aftershock.protect.tiles import as_matrices, tile_deviations
from aftershock.stats import upper_bound

LARGEST = 30
"""log2 of the largest error: with it a sum still fits an int32."""

Loss = Callable[[int, int, int], float]
"""The loss for log2 size, log2 frequency and the number of a seed."""


@dataclass(frozen=True)
class GridPoint:
    """What 2^log_frequency errors of 2^log_size each cost: one loss in perplexity for each seed that was needed."""

    log_size: int
    log_frequency: int
    losses: tuple[float, ...]
    acceptable: bool

    @property
    def log_msd(self) -> int:
        """log2 of the sum of the errors."""
        return self.log_size + self.log_frequency


@dataclass(frozen=True)
class FittedRegion:
    """A component's critical region, for a whole product of `tiles` tiles, and the points that it was fitted to.

    `clean`: perplexity without errors. `msd`: from which sum of deviations on a product does too much harm, whatever
    it is the sum of: ApproxABFT's threshold, from the same points; inf where none did.
    """

    component: str
    region: CriticalRegion
    tiles: int
    clean: float
    points: tuple[GridPoint, ...]

    @property
    def msd(self) -> float:
        """The least MSD of a point that is not acceptable."""
        return min((2.0**point.log_msd for point in self.points if not point.acceptable), default=float("inf"))

    @property
    def of_tile(self) -> CriticalRegion:
        """The region of one tile, `CriticalRegion.scaled`."""
        return self.region.scaled(1 / self.tiles)


def fit_component(
    model: LoadedModel,
    component: str,
    windows: torch.Tensor,
    array: SystolicArray,
    accepted: float = 0.3,
    seeds: int = 3,
    seed: int = 0,
) -> FittedRegion:
    """Fit a component's region for products as large as those of one pass over `windows`: token ids, shape (passes,
    windows, length).

    A point is acceptable when the upper 95 % bound of its loss over `seeds` is at most `accepted`, in perplexity. Every
    error lies in a column of a tile of its own, so that frequency is what checks count. A component that no error
    harms gets a region above all frequencies tried. Raises InputError where the model has no such sums, or below two
    seeds.
    """
    if seeds < 2:
        raise InputError(f"{seeds} seed(s) bound no loss: give at least 2")
    seen: list[tuple[int, int]] = []

    def look(_: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if not seen:
            seen.append((len(tile_deviations(sums, left, right, array)), _columns(as_matrices(sums, right), array)))
        return sums

    with changed_sums(model, component, look):
        clean = text_perplexity(model, windows)
    (tiles, columns), *_ = seen

    def loss(log_size: int, log_frequency: int, trial: int) -> float:
        place = (log_size * (LARGEST + 1) + log_frequency) * seeds + trial
        with equal_errors(model, component, 2**log_size, 2**log_frequency, array, seed, place):
            return text_perplexity(model, windows) - clean

    points = search_border(loss, int(log2(columns)), seeds, accepted)
    return FittedRegion(component, region_of(points), tiles, clean, points)


def search_border(loss: Loss, highest: int, seeds: int, accepted: float) -> tuple[GridPoint, ...]:
    """Points on both sides of the border of what is acceptable, for log2 frequencies up to `highest`.

    Every second frequency, and the one between where harm begins. Larger and more errors are taken to do more harm, so
    each frequency is searched from the border of the last one: in growing steps, then by halves. Seeds end once the
    mean can't come down to what is accepted any more.
    """

    @cache
    def at(log_frequency: int, log_size: int) -> GridPoint:
        losses: list[float] = []
        while len(losses) < seeds and sum(losses) <= seeds * accepted:
            losses.append(loss(log_size, log_frequency, len(losses)))
        return GridPoint(log_size, log_frequency, tuple(losses), _bearable(losses, seeds, accepted))

    found: dict[tuple[int, int], GridPoint] = {}

    def harmful(log_frequency: int, log_size: int) -> bool:
        point = at(log_frequency, log_size)
        found[log_frequency, log_size] = point
        return not point.acceptable

    def border(log_frequency: int, start: int) -> int | None:
        """The least size that does harm, or None."""
        high = start
        if not harmful(log_frequency, high):
            if high == LARGEST or not harmful(log_frequency, LARGEST):
                return None
            low, high = high, LARGEST
        else:
            low, step = high - 1, 1
            while low >= 0 and harmful(log_frequency, low):
                high, step = low, 2 * step
                low = max(high - step, -1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if harmful(log_frequency, middle) else (middle, high)
        return high

    start, harmless = LARGEST, -1
    for log_frequency in range(0, highest + 1, 2):
        least = border(log_frequency, start)
        if least is None:
            harmless = log_frequency
        else:
            start = least
    if 0 <= harmless < highest:
        border(harmless + 1, LARGEST)
    return tuple(found[key] for key in sorted(found))


def region_of(points: Sequence[GridPoint]) -> CriticalRegion:
    """The region of some points (`hardware.fit_region`); above all frequencies tried where every one is acceptable."""
    fine = [point.acceptable for point in points]
    frequencies = [point.log_frequency for point in points]
    if all(fine):
        return CriticalRegion(2.0, 0.0, float(max(frequencies)))
    return fit_region([point.log_msd for point in points], frequencies, fine)


@contextmanager
def equal_errors(
    model: LoadedModel, component: str, size: int, frequency: int, array: SystolicArray, seed: int, index: int
) -> Iterator[None]:
    """While open, `frequency` errors of `size` are added to the sums of every product of a component, a function of
    (seed, index), the layer and the pass; each in a token of a tile that has no other. InputError where there are not
    as many."""

    def change(number: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        matrices = as_matrices(sums, right)
        columns = _columns(matrices, array)
        if frequency > columns:
            raise InputError(f"{frequency} errors don't fit in {columns} columns of tiles: take fewer, or more tokens")
        random = generator(seed, index, f"equal errors {component} {number}")
        outputs, width = matrices.shape[-1], array.tile_outputs
        row, block = np.divmod(distinct(random, columns, frequency), -(-outputs // width))
        begin = block * width
        within = random.random(frequency) * np.minimum(width, outputs - begin)
        place = row * outputs + begin + within.astype(np.int64)
        matrices.view(-1)[torch.from_numpy(place).to(sums.device)] += size
        return sums

    with changed_sums(model, component, change):
        yield


def _columns(matrices: torch.Tensor, array: SystolicArray) -> int:
    """How many columns all tiles have together: one for every token and block of outputs."""
    products, tokens, outputs = matrices.shape
    return products * tokens * -(-outputs // array.tile_outputs)


def _bearable(losses: Sequence[float], seeds: int, accepted: float) -> bool:
    return len(losses) == seeds and upper_bound(losses) <= accepted
