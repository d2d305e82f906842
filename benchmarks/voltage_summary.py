"""What the records of `benchmarks.protect_voltage` say: losses with bounds, recoveries, best voltages and energy."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from math import isfinite
from operator import gt, lt, sub
from statistics import fmean
from typing import Any

from aftershock.hardware import TABLE_II, OperatingPoint, Scheme, best_point, error_table, saving
from aftershock.stats import upper_bound
from benchmarks.recorded import Json
from benchmarks.voltage_protocol import ACCEPTED, EXACT, LOST, SAME, error_free, region_of_record, schemes

SENSITIVE = ("o", "down")
"""Components that lose much at the first voltage with errors (ReaLM): all others are held to the accepted loss."""

_TABLE = error_table("drift-active")
_PLAIN = {"table": _TABLE.name, "unit": "element", "bits": "all", "dataflow": "output-stationary", "scope": "tile"}
_STATISTICAL, _CLASSICAL, _APPROX, _NONE, _DUPLICATION = (
    "statistical ABFT",
    "classical ABFT",
    "ApproxABFT",
    "none",
    "duplication",
)


def summary(records: Sequence[Json]) -> dict[str, Any]:
    """Figures of every model and pass; `n` counts trials."""
    runs: dict[tuple[Any, ...], list[Json]] = {}
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


def checks(found: Json) -> Iterator[Json]:
    """What the measurement set out to reach, of what the `summary` holds of it: at the voltage of harm statistical ABFT
    loses no more than is accepted, but in sensitive components; nowhere it recovers more tiles than the others."""
    for run in found["runs"]:
        sizes = " x ".join(str(run[name]) for name in ("passes", "windows", "length"))
        for own in run["components"]:
            where = f"{run['model']} {run['arithmetic']}, {sizes} tokens on {run['device']}, {own['component']}"
            harm = own["at_voltage_of_harm"]
            if own["component"] not in SENSITIVE and harm is not None and _STATISTICAL in harm:
                upper = harm[_STATISTICAL]["upper"]
                met = upper is not None and float(upper) <= ACCEPTED
                name = f"{where}: loss under statistical ABFT at the voltage of harm, upper 95 % bound"
                yield {"name": name, "value": upper, "target": ACCEPTED, "unit": "perplexity", "met": met}
            for other, excess in own["range"]["largest_excess_over"].items():
                if excess is not None:
                    name = f"{where}: tiles that statistical ABFT recovers more than {other}, most at any voltage"
                    yield {"name": name, "value": excess, "target": 0.0, "unit": "share of tiles", "met": excess <= 0}


def component(records: Iterable[Json], fit: Json) -> dict[str, Any]:
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


def _reading(record: Json) -> dict[str, Any]:
    return {name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in _PLAIN}


def _compared(records: Sequence[Json]) -> dict[str, Any] | None:
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


def _figures(records: Sequence[Json]) -> dict[str, Any]:
    found = [float(one["loss"]) for one in records]
    return {
        "loss": _finite(fmean(found)),
        "upper": _finite(upper_bound(found)) if len(found) > 1 else None,
        "seeds": len(found),
        "recovered": fmean(one["again"] / one["tiles"] for one in records),
    }


def _by_voltage(records: Iterable[Json], scheme: str) -> dict[int, list[Json]]:
    found: dict[int, list[Json]] = {}
    for one in records:
        if one["scheme"] == scheme:
            found.setdefault(one["millivolts"], []).append(one)
    return found


def _shares(plain: Sequence[Json], scheme: Scheme) -> dict[int, float]:
    """The share of tiles that a scheme computes again at each voltage of the range. Classical ABFT recovers what alarms
    and duplication what is corrupted, whatever became of it: counted where no scheme was at work."""
    counted = {_CLASSICAL: "alarms", _DUPLICATION: "corrupted"}.get(scheme.name, "again")
    of = _NONE if counted != "again" else scheme.name
    shares = {
        voltage: fmean(one[counted] / one["tiles"] for one in records)
        for voltage, records in _by_voltage(plain, of).items()
    }
    return {v: 1 - (1 - share) ** 2 for v, share in shares.items()} if scheme.name == _DUPLICATION else shares


def _range(plain: Sequence[Json]) -> dict[str, Any]:
    """Loss and share of tiles recovered over the range of voltages, and where the statistical rule recovers less."""
    none, statistical, approx = (_by_voltage(plain, name) for name in (_NONE, _STATISTICAL, _APPROX))
    both = sorted(set(none) & set(statistical) & set(approx))
    seeds = {
        voltage: set.intersection(*({one["seed"] for one in kind[voltage]} for kind in (none, statistical, approx)))
        for voltage in both
    }

    def recovered(records: dict[int, list[Json]], what: str) -> list[float]:
        """By voltage, over the seeds that all schemes were tried with."""
        alike = ([one for one in records[voltage] if one["seed"] in seeds[voltage]] for voltage in both)
        return [sum(one[what] for one in own) / sum(one["tiles"] for one in own) for own in alike]

    own = recovered(statistical, "again")
    others = {_CLASSICAL: recovered(none, "alarms"), _APPROX: recovered(approx, "again")}
    return {
        "rows": [
            {
                "voltage": voltage / 1000,
                "rate": float(_TABLE.rate(voltage / 1000)),
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
        "largest_excess_over": {name: max(map(sub, own, shares), default=None) for name, shares in others.items()},
    }


def _mean(shares: Sequence[float]) -> float | None:
    return fmean(shares) if shares else None


def _pairs(own: Sequence[float], other: Sequence[float], holds: Callable[[float, float], bool]) -> int:
    return sum(holds(*pair) for pair in zip(own, other, strict=True))


def _best(plain: Sequence[Json], used: Sequence[Scheme]) -> dict[str, Any]:
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


def _best_of(plain: Sequence[Json], scheme: Scheme) -> OperatingPoint:
    shares, tried = _shares(plain, scheme), _by_voltage(plain, scheme.name)
    fine = {
        voltage / 1000: share
        for voltage, share in shares.items()
        if isinstance(scheme, EXACT) or upper_bound([one["loss"] for one in tried[voltage]]) <= ACCEPTED
    } | {error_free(_TABLE): 0.0}
    return best_point(scheme, list(fine), list(fine.values()), [True] * len(fine))


def _finite(value: float) -> float | str:
    """As JSON has it: infinities as words."""
    return value if isfinite(value) else str(value)
