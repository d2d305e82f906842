"""One trial of `benchmarks.protect_voltage`: timing errors in a component, a scheme that mends some, the loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from aftershock.hardware import ACCUMULATOR_BITS, ErrorTable, Gemm, Scheme, SystolicArray, draw_faults
from aftershock.models import LoadedModel, text_perplexity
from aftershock.protect import Scope, by_depth, changed_sums, recover

_ONE_PASS = SystolicArray("output-stationary")


@dataclass
class Tiles:
    """Counts over the products of one pass."""

    tiles: int = 0
    alarms: int = 0
    corrupted: int = 0
    again: int = 0


@dataclass(frozen=True)
class Setting:
    """At which voltage, in volts, which errors appear in a component of a model, and what is done about them."""

    component: str
    voltage: float
    scheme: Scheme
    table: ErrorTable
    array: SystolicArray = field(default_factory=lambda: SystolicArray("output-stationary"))
    scope: Scope = "tile"
    bits: tuple[int, ...] = tuple(range(ACCUMULATOR_BITS))


def exact_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Products of whole numbers in float64, where no sum of them is rounded; int32."""
    # Not `torch.matmul`, which an attention in integers takes for one of its own two.
    return (left.double() @ right.double()).to(torch.int32)


@contextmanager
def at_voltage(model: LoadedModel, setting: Setting, seed: int) -> Iterator[Tiles]:
    """While open, a component's products are computed at a voltage; the counts are complete after a pass.

    Every sum, or weight-stationary every partial sum, is struck with the table's rate in one of `bits` (or, in the unit
    "bit", each of them is with that rate): a function of the seed and the layer. All else is computed without errors.
    """
    counts = Tiles()
    rate, array = float(setting.table.rate(setting.voltage)), setting.array

    def change(number: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shape = sums.shape
        if array.dataflow == "weight-stationary":
            left, right = by_depth(left, right, array)
            sums = exact_product(left, right)
        clean = sums.clone()
        outputs = sums.shape[-1]
        # Places are drawn in one matrix as large as all partial sums together: which lies where makes no difference.
        gemm = Gemm(outputs, 1, sums.numel() // outputs)
        faults = draw_faults(_ONE_PASS, gemm, rate, seed, number, setting.table.unit, setting.bits)
        place = torch.from_numpy(faults.place).to(sums.device)
        sums.view(-1)[place] ^= torch.from_numpy(faults.mask.view("int32")).to(sums.device)
        found = recover(sums, left, right, lambda: clean, setting.scheme, array, setting.scope)
        counts.tiles += len(found.alarms)
        counts.alarms += int(found.alarms.sum())
        counts.corrupted += int(found.corrupted.sum())
        counts.again += int(found.again.sum())
        mended = found.sums.sum(0, dtype=torch.int32) if array.dataflow == "weight-stationary" else found.sums
        return mended.view(shape)

    with changed_sums(model, setting.component, change):
        yield counts


def trial(model: LoadedModel, windows: torch.Tensor, setting: Setting, seed: int) -> tuple[float, Tiles]:
    """Perplexity of windows at a voltage, and what became of the tiles."""
    with at_voltage(model, setting, seed) as counts:
        found = text_perplexity(model, windows)
    return found, counts


def depth_passes(model: LoadedModel, component: str, windows: torch.Tensor, array: SystolicArray) -> int:
    """Into how many partial sums an array cuts a sum of a component."""
    depths: set[int] = set()

    def look(_: int, sums: torch.Tensor, left: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        depths.add(left.shape[-1])
        return sums

    with changed_sums(model, component, look):
        # One pass of one text has the shapes of all.
        text_perplexity(model, windows[:1, :1])
    return max(array.passes(Gemm(1, depth, 1)) for depth in depths)
