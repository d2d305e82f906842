"""The page of a plan: SDC before and after, what was chosen, what every other budget would buy."""

from dataclasses import dataclass
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert

from aftershock.protect import Planned, ProtectionPlan, protections_text
from aftershock.report.drawing import ACCENT, NEUTRAL, finished
from aftershock.report.figure import Figure
from aftershock.report.rendering import rendered
from aftershock.report.table import Table
from aftershock.report.wording import added, interval, percent, point_interval, rate
from aftershock.report.write import replaced
from aftershock.study import Rate


@dataclass(frozen=True)
class PlanContent:
    """Everything the page says."""

    title: str
    statement: str
    warnings: tuple[str, ...]
    figures: tuple[Figure, ...]
    sets: Table
    offered: Table
    command: str


def plan_content(found: ProtectionPlan, command: str) -> PlanContent:
    """What there is to say of a plan that a command line made."""
    fresh, cost = found.fresh, found.cost
    named = "; ".join(found.chosen)
    return PlanContent(
        title=f"{found.model}: SDC {percent(fresh.before.estimate)} before, {percent(fresh.after.estimate)} after",
        statement=f"{named[0].upper()}{named[1:]}: chosen among {len(found.offered)} protections, on the "
        f"{found.harmful} of {found.trials} recorded faults that did harm, for {100 * found.budget:g} % of latency and "
        f"{100 * found.memory_budget:g} % of memory; tried on {fresh.trials} fresh faults.",
        warnings=tuple(_warnings(found)),
        figures=(
            _figure("SDC before", fresh.before, f"{fresh.before.n} fresh faults, unprotected"),
            _figure("SDC after", fresh.after, "the same faults on the protected model"),
            Figure(
                "Difference",
                f"{100 * fresh.difference.estimate:+.2f}",
                _bounds(fresh.difference),
                f"points, paired by fault, p = {fresh.p_value:.2g}; {fresh.mended} mended, {fresh.caused} caused",
            ),
            Figure(
                "Latency",
                added(cost.latency.estimate),
                _bounds(cost.latency),
                _latency(found),
            ),
            _coverage(found),
        ),
        sets=Table(
            "On which faults",
            "Rates are means over faults of the share of answers that are silently wrong, with 95 % intervals. The "
            "faults that a set was chosen on flatter it: the fresh ones count.",
            ("faults", "SDC before", "SDC after"),
            (
                ("chosen on", *map(_written, (found.recorded.before, found.recorded.after))),
                ("fresh", *map(_written, (fresh.before, fresh.after))),
            ),
        ),
        offered=Table(
            "What there was to choose from",
            "Removed: recorded faults that do no harm any more with this protection alone; each was run again. Caused: "
            "faults that ended in NaN or a crash, and are wrong in silence with it. Latency: share of the time of a "
            "whole answer; protections that remove nothing are not timed.",
            ("protection", "chosen", "faults removed", "caused", "latency", "memory"),
            tuple(
                (
                    one.name,
                    "yes" if one.chosen else "",
                    f"{one.removes} of {found.harmful}",
                    str(one.causes),
                    "–" if one.latency is None else f"{added(one.latency.estimate)} {_bounds(one.latency)}",
                    "–" if one.nbytes is None else f"{one.nbytes / 1e6:,.2f} MB",
                )
                for one in sorted(found.offered, key=lambda one: (not one.chosen, -one.removes))
            ),
        ),
        command=command,
    )


def _warnings(found: ProtectionPlan) -> list[str]:
    cost, said = found.cost, []
    if cost.latency.estimate > found.budget:
        said.append(
            f"The chosen set costs {added(cost.latency.estimate)} together, more than its budget of "
            f"{100 * found.budget:g} %: costs that were measured one by one and added up came to "
            f"{added(cost.predicted)}."
        )
    if found.false_alarms:
        said.append(f"{found.false_alarms:,} of {found.checked:,} checks of clean runs were false alarms.")
    return said


def _latency(found: ProtectionPlan) -> str:
    cost = found.cost
    return (
        f"predicted {added(cost.predicted)}; prefill {added(cost.prefill.estimate)}, decode "
        f"{added(cost.decode.estimate)}; {cost.nbytes / 1e6:,.2f} MB kept"
    )


def _coverage(found: ProtectionPlan) -> Figure:
    alarms = f"{found.false_alarms:,} false alarms in {found.checked:,} checks of clean runs"
    if found.fresh.coverage is None:
        return Figure("Coverage", "–", "", f"no fresh fault did harm; {alarms}")
    return _figure("Coverage", found.fresh.coverage, f"of harmful fresh faults seen by the set; {alarms}")


def _figure(title: str, found: Rate, meaning: str) -> Figure:
    return Figure(title, percent(found.estimate), interval(found.low, found.high), meaning)


def _written(found: Rate) -> str:
    return rate(found.estimate, found.low, found.high)


def _bounds(found: Rate) -> str:
    return point_interval(found.low, found.high)


def curve_frame(found: ProtectionPlan) -> pl.DataFrame:
    """One row for each set worth its latency: latency, SDC that it leaves, what it holds, and whether it was chosen."""
    rows = [
        (one.latency, one.sdc, "; ".join(one.names) or "nothing", set(one.names) == set(found.chosen))
        for one in found.curve
    ]
    return pl.DataFrame(rows, schema=["latency", "sdc", "names", "chosen"], orient="row")


def curve_chart(found: ProtectionPlan) -> alt.LayerChart:
    """The SDC rate that is left of the recorded faults over latency."""
    rows = curve_frame(found)
    x = alt.X("latency:Q", title="latency added (predicted)", axis=alt.Axis(format="~%", tickCount=8))
    y = alt.Y("sdc:Q", title="SDC rate left", axis=alt.Axis(format="~%", tickCount=6), scale=alt.Scale(zero=True))
    tooltip = [
        alt.Tooltip("names:N", title="set"),
        alt.Tooltip("latency:Q", format=".2%"),
        alt.Tooltip("sdc:Q", title="SDC rate", format=".2%"),
    ]
    points_of = alt.Chart(rows)
    budget = alt.Chart(pl.DataFrame({"latency": [found.budget]}))
    within = found.budget <= float(rows["latency"].to_list()[-1]) * 1.2
    layers = [
        points_of.mark_line(interpolate="step-after", color=NEUTRAL, strokeWidth=1.5).encode(x=x, y=y),
        points_of.mark_point(filled=True, size=70, opacity=1).encode(
            x=x,
            y=y,
            color=alt.condition("datum.chosen", alt.value(ACCENT), alt.value(NEUTRAL)),
            tooltip=tooltip,
        ),
        *([budget.mark_rule(strokeDash=[4, 3], color=ACCENT).encode(x=x)] if within else []),
    ]
    return finished(layers, 320)


def protection_page(found: ProtectionPlan, command: str) -> str:
    """A plan as one HTML document that loads nothing, as a study's page does."""
    return rendered("protection.html.j2", plan_content(found, command), {"curve": curve_chart(found).to_dict()})


def write_protection_plan(planned: Planned, command: str, folder: Path) -> Path:
    """Write `protections.json`, which `load_protections` reads, `plan.json`, `report.html` and `curve.png` into a
    folder; returns the HTML's path. Raises InputError when the folder can't be written."""
    picture = curve_chart(planned.record).properties(width=720)
    contents = {
        "protections.json": protections_text(planned.protections),
        "plan.json": planned.record.model_dump_json(indent=1) + "\n",
        "report.html": protection_page(planned.record, command),
        "curve.png": vl_convert.vegalite_to_png(picture.to_json(), scale=2),
    }
    replaced(folder, contents)
    return folder / "report.html"
