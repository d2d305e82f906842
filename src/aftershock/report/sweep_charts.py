"""The charts of a sweep: curves over rates and numbers of errors, or the values of one or two other keys."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from aftershock.faults import sweep_name
from aftershock.report.drawing import ACCENT, NEUTRAL, RATE_TOOLTIPS, SHARE, finished, rate_colour, top
from aftershock.report.panels import Panel
from aftershock.report.sweep import LOST
from aftershock.report.wording import percent, rate
from aftershock.study import SEVERITIES, Curve, Summary, SweptRate, rising

_COLOURS = ("#3d8fc6", "#eca02f", "#d9504c", "#4fa3a5", "#8d79e0", "#7a9a3f", "#c2699c", "#98a2ad")
"""One colour per group, legible on light and on dark; used again where there are more."""

_READING = (
    "Line and points: mean over faults; band: 95 % interval. Dashed: golden. Faults see items of their own, so that "
    "lines near golden differ by chance."
)

Axis = Literal["rate", "errors"]

_TITLES: dict[Axis, str] = {"rate": "rate", "errors": "injected errors"}


def sweep_panels(summary: Summary) -> Iterator[Panel]:
    """Every panel of a sweep: curves where rates or counts are swept, else what the other keys do: dots for one, a map
    for two, and for more a map of the last two at every value of the others."""
    if summary.curves:
        yield from _curve_panels(summary.curves)
    elif summary.sweep and not summary.sweep[0].values.keys() & set(SEVERITIES):
        keys = tuple(summary.sweep[0].values)
        if len(keys) == 1:
            yield Panel(
                "sweep",
                f"SDC rate by {keys[0]}",
                "Point and 95 % interval over faults.",
                6,
                value_chart(summary.sweep, keys[0]).to_dict(),
            )
        else:
            yield from _map_panels(summary.sweep, keys)


def _map_panels(swept: Sequence[SweptRate], keys: Sequence[str]) -> Iterator[Panel]:
    """Maps with one scale of colours; side by side where there are several."""
    *others, rows, columns = keys
    parts: dict[str, list[SweptRate]] = {}
    for one in swept:
        parts.setdefault(sweep_name({key: one.values[key] for key in others}), []).append(one)
    largest = top(value_frame(swept)["estimate"])
    for number, (name, own) in enumerate(parts.items()):
        yield Panel(
            f"sweep-{number}",
            f"{name}: SDC rate by {rows} and {columns}" if name else f"SDC rate by {rows} and {columns}",
            "The interval and the number of faults are under the pointer.",
            3 if others else 6,
            value_map(own, rows, columns, largest).to_dict(),
        )


def _curve_panels(curves: Sequence[Curve]) -> Iterator[Panel]:
    """By rate and by errors side by side; a row for each value of the first key where two or more others are swept."""
    parts: dict[str, list[Curve]] = {}
    for curve in curves:
        parts.setdefault(next(iter(curve.group.values())) if len(curve.group) > 1 else "", []).append(curve)
    measure = LOST[curves[0].measure]
    for number, (value, own) in enumerate(parts.items()):
        of = f"{next(iter(own[0].group))} = {value}: {measure}" if value else f"{measure[0].upper()}{measure[1:]}"
        frame = curve_frame(own)
        for axis, title in _TITLES.items():
            rows = frame.filter(pl.col(axis) > 0)
            if not rows.is_empty():
                yield Panel(
                    f"curves-{number}-{axis}",
                    f"{of} by {title}",
                    _READING,
                    3,
                    curve_chart(rows, axis, own).to_dict(),
                )


def curve_frame(curves: Sequence[Curve]) -> pl.DataFrame:
    """One row per point: `group`, `rate` (null in a sweep over counts), `errors` (null where no more than before),
    then `estimate`, `low`, `high`, `n` and `written` of its share."""
    return pl.DataFrame(
        [
            (
                _label(curve),
                point.rate,
                point.errors if place in rising(curve.points) else None,
                share.estimate,
                share.low,
                share.high,
                share.n,
                rate(share.estimate, share.low, share.high),
            )
            for curve in curves
            for place, point in enumerate(curve.points)
            for share in (point.share,)
        ],
        schema={"group": pl.String()}
        | dict.fromkeys(("rate", "errors", "estimate", "low", "high"), pl.Float64())
        | {"n": pl.Int64(), "written": pl.String()},
        orient="row",
    )


def _label(curve: Curve) -> str:
    """The group's own values; the first is left to the panel where there are several."""
    values = tuple(curve.group.values())
    return ", ".join(values[1:] if len(values) > 1 else values) or "all"


def curve_chart(rows: pl.DataFrame, axis: Axis, curves: Sequence[Curve]) -> alt.LayerChart:
    """Share kept over a logarithmic axis of severities (rows: `curve_frame`, those with a place on that axis), one
    line with its band per curve; golden's share dashed."""
    keys = tuple(curves[0].group)
    groups = [_label(curve) for curve in curves]
    decades = np.log10(rows[axis].to_numpy())
    powers = range(math.floor(decades.min()), math.ceil(decades.max()) + 1)
    x = alt.X(
        f"{axis}:Q",
        title=_TITLES[axis],
        scale=alt.Scale(type="log", domain=[10.0 ** powers[0], 10.0 ** powers[-1]]),
        axis=alt.Axis(
            values=[10.0**power for power in powers], format="~e" if axis == "rate" else ",.4~r", labelOverlap=True
        ),
    )
    title = LOST[curves[0].measure]
    y = alt.Y("estimate:Q", title=title, axis=SHARE, scale=alt.Scale(domainMin=0))
    colour = alt.Color(
        "group:N",
        title=", ".join(keys[1:] if len(keys) > 1 else keys) or None,
        scale=alt.Scale(domain=groups, range=list(_COLOURS)),
        legend=alt.Legend(orient="top", symbolOpacity=1, symbolStrokeWidth=2.5, columns=4) if keys else None,
    )
    base = alt.Chart(rows)
    tooltip = [
        alt.Tooltip("group:N", title=", ".join(keys) or "group"),
        alt.Tooltip("rate:Q", format="~e"),
        alt.Tooltip("errors:Q", format=",.4~r"),
        alt.Tooltip("written:N", title=f"{title}, 95 % interval"),
        alt.Tooltip("n:Q", title="faults"),
    ]
    band = base.mark_area(opacity=0.13).encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour)
    lines = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    return finished((_golden(curves), band, lines, dots), 280)


def _golden(curves: Sequence[Curve]) -> alt.Chart:
    """Golden's share on the items of the curves, dashed."""
    golden = sum(curve.baseline for curve in curves) / len(curves)
    rows = pl.DataFrame({"estimate": [golden], "written": [percent(golden)]})
    line = alt.Chart(rows).mark_rule(color=NEUTRAL, strokeDash=[4, 3], strokeWidth=1.5)
    drawn: alt.Chart = line.encode(y=alt.Y("estimate:Q"), tooltip=alt.Tooltip("written:N", title="golden"))
    return drawn


def value_frame(swept: Sequence[SweptRate]) -> pl.DataFrame:
    """One row per combination: its keys, then `estimate`, `low`, `high`, `n` and `written` of its SDC rate, and
    `short`, the rate alone."""
    return pl.DataFrame(
        {
            **one.values,
            "estimate": one.sdc.estimate,
            "low": one.sdc.low,
            "high": one.sdc.high,
            "n": one.sdc.n,
            "written": rate(one.sdc.estimate, one.sdc.low, one.sdc.high),
            "short": percent(one.sdc.estimate),
        }
        for one in swept
    )


def value_chart(swept: Sequence[SweptRate], key: str) -> alt.LayerChart:
    """SDC rate with its interval over the values of one key."""
    base, x = alt.Chart(value_frame(swept)), _values(alt.X, swept, key)
    y = alt.Y("estimate:Q", title="SDC rate", axis=SHARE)
    bars = base.mark_rule(strokeWidth=2, color=NEUTRAL).encode(x=x, y=alt.Y("low:Q", title="SDC rate"), y2="high:Q")
    dots = base.mark_point(filled=True, size=70, color=ACCENT, opacity=1).encode(
        x=x, y=y, tooltip=[alt.Tooltip(f"{key}:N"), *RATE_TOOLTIPS]
    )
    return finished((bars, dots), 240)


def value_map(swept: Sequence[SweptRate], rows: str, columns: str, largest: float) -> alt.LayerChart:
    """SDC rate of every combination of two keys' values; colours end at the `largest` rate."""
    frame = value_frame(swept)
    base, x, y = alt.Chart(frame), _values(alt.X, swept, columns), _values(alt.Y, swept, rows)
    cells = base.mark_rect(stroke=NEUTRAL, strokeOpacity=0.35, strokeWidth=0.5).encode(
        x=x,
        y=y,
        color=rate_colour(largest),
        tooltip=[alt.Tooltip(f"{rows}:N"), alt.Tooltip(f"{columns}:N"), *RATE_TOOLTIPS],
    )
    text = alt.Text("short:N")
    light = base.transform_filter(f"datum.estimate <= {0.6 * largest}").mark_text(fontSize=10, opacity=0.8)
    dark = base.transform_filter(f"datum.estimate > {0.6 * largest}").mark_text(fontSize=10, color="white")
    height = 30 * frame[rows].n_unique()
    return finished((cells, light.encode(x=x, y=y, text=text), dark.encode(x=x, y=y, text=text)), height)


def _values(channel: Any, swept: Sequence[SweptRate], key: str) -> Any:
    """An axis of a key's values, in the sweep's order."""
    domain = list(dict.fromkeys(one.values[key] for one in swept))
    axis = alt.Axis(labelAngle=0, labelLimit=140)
    return channel(f"{key}:N", title=key, scale=alt.Scale(domain=domain), axis=axis)
