"""What the records of `benchmarks.protect_voltage` say: losses with bounds, recoveries, best voltages and energy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from math import isfinite
from operator import gt, lt
from statistics import fmean
from typing import Any

from aftershock.hardware import TABLE_II, OperatingPoint, Scheme, best_point, error_table, saving
from aftershock.protect import FittedRegion, GridPoint, upper_bound
from aftershock.protect.regions.fitting import region_of
from benchmarks.voltage_protocol import ACCEPTED, EXACT, LOST, schemes
from benchmarks.voltage_records import Record

SAME = ("model", "arithmetic", "passes", "windows", "length", "device")
_PLAIN = {"table": "drift-active", "unit": "element", "bits": "all", "dataflow": "output-stationary", "scope": "tile"}
_STATISTICAL, _CLASSICAL, _APPROX, _NONE, _DUPLICATION = (
    "statistical ABFT",
    "classical ABFT",
    "ApproxABFT",
    "none",
    "duplication",
)
_ERROR_FREE = 0.85
"""Volts: the lowest of `drift-active` without errors."""


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Figures of every model and pass; `n` counts trials."""
    runs: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        runs.setdefault(tuple(record[name] for name in SAME), []).append(record)
    return {
        "n": sum(record["kind"] == "trial" for record in records),
        "accepted_loss": ACCEPTED,
        "loss_of_harm": LOST,
        "runs": [
            {
                **dict(zip(SAME, run, strict=True)),
                "clean": {one["text"]: one["perplexity"] for one in own if one["kind"] == "clean"},
                "components": [component(own, fit) for fit in own if fit["kind"] == "region"],
            }
            for run, own in runs.items()
        ],
    }


def component(records: Iterable[Record], fit: Record) -> dict[str, Any]:
    """Figures of one component of a run."""
    region = region_of_record(fit)
    own = [one for one in records if one["kind"] == "trial" and one["component"] == region.component]
    test = [one for one in own if one["text"] == "test"]
    plain = [one for one in test if _reading(one) == _PLAIN]
    used = schemes(region, "tile")
    return {
        "component": region.component,
        "region": {"a": region.region.a, "b": region.region.b, "theta_freq": _finite(region.region.theta_freq)},
        "least_harmful_msd": _finite(region.msd),
        "tiles": region.tiles,
        "points": len(region.points),
        "at_voltage_of_harm": _compared(plain),
        "range": _range(plain),
        "best": _best(plain, used),
        "published": [
            {"model": one.model, "voltage": one.voltage, "saving": one.saving}
            for one in TABLE_II
            if one.component == region.component
        ],
        "variations": [
            {**dict(reading), "at_voltage_of_harm": _compared([one for one in test if _reading(one) == dict(reading)])}
            for reading in dict.fromkeys(tuple(_reading(one).items()) for one in test)
            if dict(reading) != _PLAIN
        ],
    }


def region_of_record(fit: Record) -> FittedRegion:
    """The region that a record was fitted to."""
    points = tuple(GridPoint(**{**point, "losses": tuple(point["losses"])}) for point in fit["points"])
    return FittedRegion(fit["component"], region_of(points), fit["tiles"], fit["clean"], points)


def _reading(record: Record) -> dict[str, Any]:
    return {name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in _PLAIN}


def _compared(records: Sequence[Record]) -> dict[str, Any] | None:
    """All schemes at the voltage where all of them were tried."""
    voltages = {one["millivolts"] for one in records if one["scheme"] == _CLASSICAL}
    if not voltages:
        return None
    (voltage,) = voltages
    there = [one for one in records if one["millivolts"] == voltage]
    return {"voltage": voltage / 1000} | {
        name: _figures([one for one in there if one["scheme"] == name])
        for name in dict.fromkeys(one["scheme"] for one in there)
    }


def _figures(records: Sequence[Record]) -> dict[str, Any]:
    found = [float(one["loss"]) for one in records]
    return {
        "loss": _finite(fmean(found)),
        "upper": _finite(upper_bound(found)) if len(found) > 1 else None,
        "seeds": len(found),
        "recovered": fmean(one["again"] / one["tiles"] for one in records),
    }


def _by_voltage(records: Iterable[Record], scheme: str) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for one in records:
        if one["scheme"] == scheme:
            found.setdefault(one["millivolts"], []).append(one)
    return found


def _shares(plain: Sequence[Record], scheme: Scheme) -> dict[int, float]:
    """The share of tiles that a scheme computes again at each voltage of the range. Classical ABFT recovers what alarms
    and duplication what is corrupted, whatever became of it: counted where no scheme was at work."""
    counted = {_CLASSICAL: "alarms", _DUPLICATION: "corrupted"}.get(scheme.name, "again")
    of = _NONE if counted != "again" else scheme.name
    shares = {
        voltage: fmean(one[counted] / one["tiles"] for one in records)
        for voltage, records in _by_voltage(plain, of).items()
    }
    return {v: 1 - (1 - share) ** 2 for v, share in shares.items()} if scheme.name == _DUPLICATION else shares


def _range(plain: Sequence[Record]) -> dict[str, Any]:
    """Loss and share of tiles recovered over the range of voltages, and where the statistical rule recovers less."""
    none, statistical, approx = (_by_voltage(plain, name) for name in (_NONE, _STATISTICAL, _APPROX))
    both = sorted(set(none) & set(statistical) & set(approx))
    seeds = {
        voltage: set.intersection(*({one["seed"] for one in kind[voltage]} for kind in (none, statistical, approx)))
        for voltage in both
    }

    def recovered(records: dict[int, list[Record]], what: str) -> list[float]:
        """By voltage, over the seeds that all schemes were tried with."""
        alike = ([one for one in records[voltage] if one["seed"] in seeds[voltage]] for voltage in both)
        return [fmean(one[what] / one["tiles"] for one in own) for own in alike]

    own = recovered(statistical, "again")
    others = {_CLASSICAL: recovered(none, "alarms"), _APPROX: recovered(approx, "again")}
    return {
        "rows": [
            {
                "voltage": voltage / 1000,
                "rate": float(error_table("drift-active").rate(voltage / 1000)),
                _NONE: _figures(none[voltage]),
                _STATISTICAL: _figures(statistical[voltage]),
                _APPROX: _figures(approx[voltage]),
                _CLASSICAL: {"recovered": others[_CLASSICAL][number]},
            }
            for number, voltage in enumerate(both)
        ],
        "mean_recovered": {_STATISTICAL: _mean(own), **{name: _mean(shares) for name, shares in others.items()}},
        "voltages_with_fewer_than": {name: _pairs(own, shares, lt) for name, shares in others.items()},
        "voltages_with_more_than": {name: _pairs(own, shares, gt) for name, shares in others.items()},
    }


def _mean(shares: Sequence[float]) -> float | None:
    return fmean(shares) if shares else None


def _pairs(own: Sequence[float], other: Sequence[float], holds: Callable[[float, float], bool]) -> int:
    return sum(holds(*pair) for pair in zip(own, other, strict=True))


def _best(plain: Sequence[Record], used: Sequence[Scheme]) -> dict[str, Any]:
    """The cheapest acceptable voltage of each scheme, and what the statistical one saves against the best of the rest.

    Where every error is computed again nothing is lost. At the lowest voltage without errors nothing is recovered.
    """
    points = {scheme.name: _best_of(plain, scheme) for scheme in used}
    own = points.pop(_STATISTICAL)
    return {
        "points": {name: asdict(point) for name, point in {**points, _STATISTICAL: own}.items()},
        "saving_against_best_other": float(saving(own.energy, min(point.energy for point in points.values()))),
        "saving_against_nominal": 1 - own.energy,
    }


def _best_of(plain: Sequence[Record], scheme: Scheme) -> OperatingPoint:
    shares, tried = _shares(plain, scheme), _by_voltage(plain, scheme.name)
    fine = {
        voltage / 1000: share
        for voltage, share in shares.items()
        if isinstance(scheme, EXACT) or upper_bound([one["loss"] for one in tried[voltage]]) <= ACCEPTED
    } | {_ERROR_FREE: 0.0}
    return best_point(scheme, list(fine), list(fine.values()), [True] * len(fine))


def _finite(value: float) -> float | str:
    """As JSON has it: infinities as words."""
    return value if isfinite(value) else str(value)
