"""How many tiles each rule computes again at each voltage, for fitted regions: no model runs.

    python -m benchmarks.voltage_recoveries REGIONS --json

REGIONS is a file of `aftershock.protect.save_regions`. Errors of a table strike the sums of full tiles of random int8
operands; what a rule says of a tile depends on which bits flipped, and hardly on the operands. Best voltages and energy
are modelled, and hold as far as a region's promise does, that what it lets pass costs no more than was accepted.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from aftershock.hardware import (
    ApproxABFT,
    ClassicalABFT,
    Duplication,
    Gemm,
    OperatingPoint,
    Scheme,
    StatisticalABFT,
    SystolicArray,
    TileErrors,
    Unprotected,
    best_point,
    draw_faults,
    error_table,
    multiply,
    saving,
)
from aftershock.numerics import generator
from aftershock.protect import CriticalRegions, FittedRegion, load_regions
from benchmarks.arguments import parser
from benchmarks.environment import environment
from benchmarks.voltage_protocol import error_free

TABLE = error_table("drift-active")
VOLTAGES = tuple(millivolts / 1000 for millivolts in range(600, 851, 10))
TILES = {False: 256, True: 32}
"""Tiles drawn at each voltage, by whether the run is quick."""

_DEPTH = 8
"""Of the operands: enough for sums of either sign."""


def tiles_at(voltage: float, tiles: int) -> TileErrors:
    """Full tiles of an output-stationary array, one after another, with the errors of a voltage."""
    array = SystolicArray("output-stationary")
    gemm = Gemm(array.rows, _DEPTH, tiles * array.columns)
    random = generator(0, 0, "operands of tiles")
    weight = random.integers(-127, 128, (gemm.outputs, gemm.depth), dtype=np.int8)
    inputs = random.integers(-127, 128, (gemm.depth, gemm.tokens), dtype=np.int8)
    faults = draw_faults(array, gemm, float(TABLE.rate(voltage)), 0, round(1000 * voltage), TABLE.unit)
    return multiply(array, weight, inputs, faults).tiles


def component(fitted: FittedRegion, drawn: dict[float, TileErrors]) -> dict[str, Any]:
    """Shares of tiles computed again by voltage, and the voltage with the least energy, of each rule."""
    rules: tuple[Scheme, ...] = (
        Duplication(),
        ClassicalABFT(),
        ApproxABFT(fitted.msd / fitted.tiles),
        StatisticalABFT(fitted.of_tile),
    )
    shares = {rule.name: [rule.share(errors) for errors in drawn.values()] for rule in rules}
    best = {rule.name: _best(rule, shares[rule.name]) for rule in rules}
    own = best.pop(StatisticalABFT.name)
    without = best_point(Unprotected(), [error_free(TABLE)], [0.0], [True])
    prior = min([without, *best.values()], key=lambda point: point.energy)
    statistical = shares[StatisticalABFT.name]
    others = (ClassicalABFT.name, ApproxABFT.name)
    return {
        "component": fitted.component,
        "region": {"a": fitted.region.a, "b": fitted.region.b, "theta_freq": str(fitted.region.theta_freq)},
        "recovered": {name: dict(zip(map(str, drawn), found, strict=True)) for name, found in shares.items()},
        "fewer_at": {name: sum(np.less(statistical, shares[name]).tolist()) for name in others},
        "more_at": {name: sum(np.greater(statistical, shares[name]).tolist()) for name in others},
        "best": {name: vars(point) for name, point in {**best, StatisticalABFT.name: own}.items()},
        "best_other": vars(prior),
        "saving_against_best_other": float(saving(own.energy, prior.energy)),
    }


def _best(rule: Scheme, shares: list[float]) -> OperatingPoint:
    return best_point(rule, VOLTAGES, shares, [True] * len(VOLTAGES))


def figures(regions: CriticalRegions, tiles: int) -> dict[str, Any]:
    """Figures of every component of a file."""
    drawn = {voltage: tiles_at(voltage, tiles) for voltage in VOLTAGES}
    return {
        "model": regions.model,
        "arithmetic": regions.arithmetic,
        "table": TABLE.name,
        "n": tiles * len(VOLTAGES),
        "components": [component(fitted, drawn) for fitted in regions.components],
    }


def main() -> None:
    """Print them as one JSON object."""
    made = parser(__doc__, "fewer tiles")
    made.add_argument("regions", type=Path)
    options = made.parse_args()
    found = figures(load_regions(options.regions), TILES[options.quick])
    print(json.dumps({"benchmark": "voltage_recoveries", **environment(), **found}))


if __name__ == "__main__":
    main()
