"""What `benchmarks.protect_voltage` measures of one component, in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean

import torch

from aftershock.hardware import (
    ACCUMULATOR_BITS,
    ApproxABFT,
    ClassicalABFT,
    Duplication,
    ErrorTable,
    Scheme,
    StatisticalABFT,
    SystolicArray,
    Unprotected,
    Zeroing,
)
from aftershock.models import LoadedModel, text_perplexity
from aftershock.protect import FittedRegion, GridPoint, Scope, fit_component
from aftershock.protect.regions.fitting import region_of
from aftershock.stats import upper_bound
from benchmarks.recorded import Json, Lines
from benchmarks.voltage_trials import Setting, depth_passes, trial

COMPONENTS = ("q", "k", "v", "qk", "sv", "gate", "up", "o", "down")
LOST = 15.0
"""Perplexity that the unprotected component loses at the voltage where schemes are compared."""

ACCEPTED = 0.3
"""Perplexity that a scheme may lose."""

EXACT = (Duplication, ClassicalABFT)
"""Schemes that compute all that is wrong again, and so lose nothing: one seed shows it."""

SAME = ("model", "arithmetic", "passes", "windows", "length", "device")
"""What the records of one run have in common."""

_READING = ("table", "unit", "bits", "dataflow", "scope")
KEYS = (*SAME, "kind", "component", "seeds", "text", "scheme", "millivolts", "seed", *_READING)
"""What a record was asked for: clean perplexities, regions and trials have some of these each."""

_BISECTION_SEEDS, _STEP = 2, 5
FIT_SEED, _FIRST_TEST = 7, 100
_OUTPUT_STATIONARY = SystolicArray("output-stationary")


@dataclass(frozen=True)
class Sizes:
    """How much is measured: seeds of each fitted point, of each scheme at one voltage and over the range, and the
    distance of the range's voltages in millivolts."""

    fit_seeds: int
    loss_seeds: int
    sweep_seeds: int
    sweep_step: int


@dataclass(frozen=True)
class Bench:
    """A model, its texts as windows of token ids, where records go, and regions that were fitted before."""

    model: LoadedModel
    arithmetic: str
    fit: torch.Tensor
    test: torch.Tensor
    records: Lines
    sizes: Sizes
    regions: tuple[FittedRegion, ...] = ()

    @property
    def key(self) -> Json:
        """What every record says of the model and the pass."""
        passes, windows, length = self.test.shape
        return {
            "model": self.model.spec,
            "arithmetic": self.arithmetic,
            "passes": passes,
            "windows": windows,
            "length": length,
            "device": self.model.device.type,
        }

    def clean(self, text: str) -> float:
        """Perplexity without errors."""
        windows = self.fit if text == "fit" else self.test
        record = self.records.get(
            {"kind": "clean", "text": text, **self.key}, lambda: {"perplexity": text_perplexity(self.model, windows)}
        )
        return float(record["perplexity"])


@dataclass(frozen=True)
class Variation:
    """Another reading of what ReaLM leaves open, tried on one component."""

    name: str
    table: ErrorTable
    array: SystolicArray = _OUTPUT_STATIONARY
    scope: Scope = "tile"
    bits: tuple[int, ...] = field(default=tuple(range(ACCUMULATOR_BITS)))


def fitted(bench: Bench, component: str) -> FittedRegion:
    """A component's region, from the records or regions where it is there; tiles of an output-stationary array."""

    def measure() -> Json:
        known = next((one for one in bench.regions if one.component == component), None)
        seeds = bench.sizes.fit_seeds
        made = known or fit_component(bench.model, component, bench.fit, _OUTPUT_STATIONARY, ACCEPTED, seeds, FIT_SEED)
        return {"tiles": made.tiles, "clean": made.clean, "points": [asdict(point) for point in made.points]}

    key = {"kind": "region", "component": component, "seeds": bench.sizes.fit_seeds, **bench.key}
    return region_of_record(bench.records.get(key, measure))


def region_of_record(fit: Json) -> FittedRegion:
    """The region that a record was fitted to."""
    points = tuple(GridPoint(**{**point, "losses": tuple(point["losses"])}) for point in fit["points"])
    return FittedRegion(fit["component"], region_of(points), fit["tiles"], fit["clean"], points)


def schemes(region: FittedRegion, scope: Scope) -> tuple[Scheme, ...]:
    """The schemes that are compared; thresholds for one tile, or for a whole product."""
    share = 1 / region.tiles if scope == "tile" else 1.0
    return (
        Unprotected(),
        Zeroing(),
        Duplication(),
        ClassicalABFT(),
        ApproxABFT(region.msd * share),
        StatisticalABFT(region.region.scaled(share)),
    )


def losses(bench: Bench, text: str, setting: Setting, seeds: Sequence[int]) -> Iterator[float]:
    """Loss in perplexity of some seeds, one after the other."""
    windows, clean = bench.fit if text == "fit" else bench.test, bench.clean(text)
    key = {
        "kind": "trial",
        "text": text,
        "component": setting.component,
        "scheme": setting.scheme.name,
        "millivolts": round(1000 * setting.voltage),
        "table": setting.table.name,
        "unit": setting.table.unit,
        "bits": list(setting.bits) if len(setting.bits) < ACCUMULATOR_BITS else "all",
        "dataflow": setting.array.dataflow,
        "scope": setting.scope,
        **bench.key,
    }
    for seed in seeds:

        def measure(seed: int = seed) -> Json:
            found, tiles = trial(bench.model, windows, setting, seed)
            return {"perplexity": found, "loss": found - clean, **asdict(tiles)}

        yield float(bench.records.get({**key, "seed": seed}, measure)["loss"])


def error_free(table: ErrorTable) -> float:
    """Volts: the lowest voltage of a table without errors."""
    return min(voltage for voltage, rate in table.points if rate == 0)


def highest(table: ErrorTable) -> int:
    """Millivolts: the highest voltage of a table at which there are errors."""
    return max(round(1000 * voltage) for voltage, rate in table.points if rate > 0)


def voltage_of_harm(bench: Bench, unprotected: Setting) -> int:
    """Millivolts: the highest voltage, in steps of 5, at which the loss on the test text is 15 perplexity; the table's
    lowest where it never is. By bisection with two seeds, as errors grow as voltage falls; then downward until it holds
    for all."""
    lowest = -(-round(1000 * unprotected.table.lowest) // _STEP)

    def lost(step: int, count: int) -> float:
        at = replace(unprotected, voltage=step * _STEP / 1000)
        return fmean(losses(bench, "test", at, _seeds(count)))

    if lost(lowest, _BISECTION_SEEDS) < LOST:
        return lowest * _STEP
    low, high = lowest, highest(unprotected.table) // _STEP + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lost(middle, _BISECTION_SEEDS) >= LOST else (low, middle)
    while low > lowest and lost(low, bench.sizes.loss_seeds) < LOST:
        low -= 1
    return low * _STEP


def run_at_harm(bench: Bench, component: str, table: ErrorTable) -> None:
    """Fit, find the voltage of harm, and compare the schemes there."""
    unprotected = Setting(component, table.lowest, Unprotected(), table)
    region = fitted(bench, component)
    compare(bench, replace(unprotected, voltage=voltage_of_harm(bench, unprotected) / 1000), region)


def run_range(bench: Bench, component: str, table: ErrorTable) -> None:
    """The schemes over the range of voltages."""
    for scheme in schemes(fitted(bench, component), "tile"):
        # What exact ones recover follows from the errors that are there: see `voltage_summary`.
        if not isinstance(scheme, EXACT):
            sweep(bench, Setting(component, table.lowest, scheme, table))


def compare(bench: Bench, setting: Setting, region: FittedRegion) -> None:
    """All schemes in one setting."""
    for scheme in schemes(region, setting.scope):
        seeds = _seeds(1 if isinstance(scheme, EXACT) else bench.sizes.loss_seeds)
        list(losses(bench, "test", replace(setting, scheme=scheme), seeds))


def sweep(bench: Bench, setting: Setting) -> None:
    """The range of voltages from the highest down: several seeds until the loss is not acceptable any more, then one,
    as recoveries hardly vary."""
    acceptable = True
    for voltage in range(highest(setting.table), round(1000 * setting.table.lowest) - 1, -bench.sizes.sweep_step):
        seeds = _seeds(bench.sizes.sweep_seeds if acceptable else 1)
        found = list(losses(bench, "test", replace(setting, voltage=voltage / 1000), seeds))
        acceptable = acceptable and upper_bound(found) <= ACCEPTED


def run_variation(bench: Bench, component: str, variation: Variation) -> None:
    """Find the voltage under a variation, and compare the schemes there with the component's region."""
    found = fitted(bench, component)
    region = replace(found, tiles=found.tiles * depth_passes(bench.model, component, bench.fit, variation.array))
    lowest = variation.table.lowest
    unprotected = Setting(
        component, lowest, Unprotected(), variation.table, variation.array, variation.scope, variation.bits
    )
    compare(bench, replace(unprotected, voltage=voltage_of_harm(bench, unprotected) / 1000), region)


def _seeds(count: int) -> range:
    return range(_FIRST_TEST, _FIRST_TEST + count)
