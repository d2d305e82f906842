"""How accuracy falls as rates or numbers of faults rise: the curves of a sweep over `rate` or `count`.

The trials of a sweep that differ in the rate (or count) alone make a curve; there is one for each combination of the
other keys, its group. Measures after Morumpalle et al., "Specified Backup for Fragile Parts of LLM" (2024), section
6.3, which leaves the weights of AWRCL open: here all severities weigh the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aftershock.faults import sweep_name, sweep_value
from aftershock.stats import Estimate, awrcl_interval, threshold_interval
from aftershock.study.kept import Measure, kept_by, measure_of
from aftershock.study.rates import Floats, Rate, mean_rate
from aftershock.study.records import GoldenRecord, Record
from aftershock.study.store import StoredStudy
from aftershock.study.swept import Combination, swept_trials

SEVERITIES = ("rate", "count")
"""Keys of [faults] that say how many errors there are."""

Interval = tuple[float, float, float]
"""Estimate, low and high of a 95 % interval."""


class CurvePoint(Record):
    """One severity. `rate` is None in a sweep over counts; `errors` is the mean number of faults that its fault sets
    had, `share` what `Curve.measure` says."""

    rate: float | None
    errors: float
    share: Rate


class Fragility(Record):
    """Of a curve over one kind of severity: the average relative loss, all severities alike (AWRCL), and the severity
    at which half is lost: 0 where it is at the smallest already, infinite where it is not at the largest.
    `severities` are those that the average is over, `tried` the smallest and the largest of the curve."""

    awrcl: Interval | None
    half_lost: Interval
    severities: tuple[float, ...]
    tried: tuple[float, float]


class Curve(Record):
    """The combinations that differ in severity alone. `group` are the values of the other keys; `baseline` is
    golden's share on the items of the group's trials. A fault's loss is that on its own items. `by_errors` averages
    over the numbers of errors that every group of the study reached."""

    group: dict[str, str]
    measure: Measure
    baseline: float
    points: tuple[CurvePoint, ...]
    by_rate: Fragility | None
    by_errors: Fragility | None

    @property
    def name(self) -> str:
        """`components = q k`; `all` where nothing else is swept."""
        return sweep_name(self.group) or "all"

    def text(self) -> str:
        """`components = q k: by rate AWRCL 12.3 % (...), half lost at 3e-05 (...); by errors ...`."""
        said = [
            f"by {kind} {_fragility_text(found)}"
            for kind, found in (("rate", self.by_rate), ("errors", self.by_errors))
            if found is not None
        ]
        return f"{self.name}: {'; '.join(said) or 'too few severities to tell'}"


def rising(points: Sequence[CurvePoint]) -> list[int]:
    """Places of the points that had more errors than each before them, and some: rates so low that hardly any fault is
    drawn may come to none, or to as many."""
    errors = [0.0, *(point.errors for point in points)]
    return [place for place in range(len(points)) if errors[place + 1] > max(errors[: place + 1])]


def severity_text(value: float, tried: tuple[float, float]) -> str:
    """A severity as people read it: `3.20e-05`, `120`, or that it lies beyond those tried."""
    if value == 0:
        return f"< {_short(tried[0])}"
    return f"> {_short(tried[1])}" if value == float("inf") else _short(value)


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.01 else f"{value:.2e}"


def _fragility_text(found: Fragility) -> str:
    estimate, low, high = (severity_text(value, found.tried) for value in found.half_lost)
    average = ""
    if found.awrcl is not None:
        share, least, most = (100 * value for value in found.awrcl)
        average = f"AWRCL {share:.2f} % ({least:.2f} to {most:.2f}), "
    return f"{average}half lost at {estimate} ({low} to {high})"


@dataclass(frozen=True, eq=False)
class _Group:
    """The points of a curve, in the order of severity, and of each the shares as if every trial had seen items that
    golden answers as well as those of the whole group."""

    values: dict[str, str]
    points: tuple[CurvePoint, ...]
    baseline: float
    samples: tuple[Floats, ...]

    @property
    def errors(self) -> Floats:
        """Numbers of errors that rise, shape (points,)."""
        return np.array([self.points[number].errors for number in rising(self.points)])


def sweep_curves(study: StoredStudy) -> tuple[Curve, ...]:
    """The curve of every group, in the sweep's order; none where neither rate nor count takes two values."""
    key = next((key for key in SEVERITIES if len(set(study.settings.sweep.get(key, ()))) > 1), None)
    if key is None:
        return ()
    members: dict[str, list[Combination]] = {}
    for one in swept_trials(study):
        others = sweep_name({name: value for name, value in one.values.items() if name != key})
        members.setdefault(others, []).append(one)
    measure = measure_of(study.golden)
    groups = [_group(key, cells, measure, study.golden) for cells in members.values()]
    shared = _shared([group.errors for group in groups if group.errors.size > 1])
    return tuple(_curve(group, measure, shared, study.settings.run.seed) for group in groups)


def _group(key: str, cells: Sequence[Combination], measure: Measure, golden: Sequence[GoldenRecord]) -> _Group:
    found = {}
    for cell in cells:
        shares = kept_by(measure, cell.trials, golden)
        known = ~np.isnan(shares.faulty)
        if known.any():
            rate, count = cell.selection.rate, cell.selection.count
            errors = float(np.mean([trial.fault_count for trial in cell.trials]))
            point = CurvePoint(rate=rate, errors=errors, share=mean_rate(shares.faulty))
            found[count if rate is None else rate] = point, shares.golden[known], shares.faulty[known]
    ordered = [found[severity] for severity in sorted(found)]
    baseline = float(np.concatenate([clean for _, clean, _ in ordered]).mean()) if ordered else 0.0
    return _Group(
        {name: sweep_value(value) for name, value in cells[0].values.items() if name != key},
        tuple(point for point, _, _ in ordered),
        baseline,
        tuple(baseline - clean + faulty for _, clean, faulty in ordered),
    )


def _shared(errors: Sequence[Floats]) -> Floats:
    """The numbers of errors of any curve that lie within the range of every curve."""
    if not errors:
        return np.empty(0)
    low, high = max(one[0] for one in errors), min(one[-1] for one in errors)
    every = np.unique(np.concatenate(errors))
    return np.asarray(every[(every >= low) & (every <= high)])


def _curve(group: _Group, measure: Measure, shared: Floats, seed: int) -> Curve:
    rates = [point.rate for point in group.points if point.rate is not None]
    places, errors = rising(group.points), group.errors
    by_rate = by_errors = None
    if group.baseline > 0 and len(rates) > 1:
        by_rate = _fragility(np.array(rates), np.array(rates), group.samples, group.baseline, seed)
    if group.baseline > 0 and len(places) > 1:
        samples = tuple(group.samples[number] for number in places)
        by_errors = _fragility(errors, shared, samples, group.baseline, seed)
    return Curve(
        group=group.values,
        measure=measure,
        baseline=group.baseline,
        points=group.points,
        by_rate=by_rate,
        by_errors=by_errors,
    )


def _fragility(tried: Floats, averaged: Floats, samples: Sequence[Floats], baseline: float, seed: int) -> Fragility:
    """Losses between severities tried are linear in the logarithm, so their average is a weighted one of those
    tried."""
    average = None
    if averaged.size:
        parts = [np.interp(np.log(averaged), np.log(tried), one) for one in np.eye(tried.size)]
        average = _interval(awrcl_interval(baseline, samples, np.array(parts).sum(axis=1), seed))
    return Fragility(
        awrcl=average,
        half_lost=_interval(threshold_interval(tried, baseline, samples, seed)),
        severities=tuple(averaged.tolist()),
        tried=(float(tried[0]), float(tried[-1])),
    )


def _interval(found: Estimate) -> Interval:
    return found.estimate, found.low, found.high
