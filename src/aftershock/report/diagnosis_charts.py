"""The charts of a diagnosis: pure functions from what was found to Altair charts."""

import math
from itertools import pairwise

import altair as alt
import polars as pl

from aftershock.diagnose import Diagnosis
from aftershock.report.drawing import ACCENT, NEUTRAL, finished
from aftershock.report.panels import Panel
from aftershock.report.wording import number

LEAST, MOST = 0.1, 1e6
"""Ends of the axis of error ratios: what lies beyond is drawn there, and written under the pointer."""

DECADES = [10.0**power for power in range(-1, 7)]

COLOURED_TO = 100.0
"""Error ratios from here on have the strongest colour."""

RATIO = "error ratio (1: as far off as rounding)"
_KINDS = ("alone, on the inputs it had", "in the run, errors before it included")


def curve_frame(found: Diagnosis) -> pl.DataFrame:
    """One row for each known ratio: order, point, kind, ratio within the axis, and the ratio as it is written."""
    rows = [
        (order, one.point, kind, drawn(ratio), number(ratio))
        for order, one in enumerate(found.curve)
        for kind, ratio in zip(_KINDS, (one.local, one.free), strict=True)
        if ratio is not None
    ]
    return pl.DataFrame(rows, schema=["order", "point", "kind", "ratio", "written"], orient="row")


def picture_frame(found: Diagnosis) -> pl.DataFrame:
    """One row for each known cell: point, column, order of both, ratio within the scale, and as it is written."""
    picture = found.picture
    rows = (
        [
            (point, name, row, column, min(max(drawn(ratio), 1.0), COLOURED_TO), number(ratio))
            for row, (point, ratios) in enumerate(zip(picture.points, picture.ratios, strict=True))
            for column, (name, ratio) in enumerate(zip(picture.columns, ratios, strict=True))
            if ratio is not None
        ]
        if picture is not None
        else []
    )
    return pl.DataFrame(rows, schema=["point", "tokens", "row", "column", "ratio", "written"], orient="row")


def drawn(ratio: float) -> float:
    """A ratio within the axis; NaN at its upper end."""
    return MOST if math.isnan(ratio) else min(max(ratio, LEAST), MOST)


def curve_panel(found: Diagnosis) -> Panel:
    """Error ratios over the order of the calls."""
    rows = curve_frame(found)
    reading = (
        "Points of the decoder in the order in which they are computed. A component that is wrong stands out alone; in "
        "the run, what follows it inherits its error. The dashed line is where rounding ends."
    )
    return Panel(
        "curve",
        "Error ratio, call by call",
        reading,
        6,
        None if rows.is_empty() else curve_chart(rows, found.threshold).to_dict(),
    )


def curve_chart(rows: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Ratios by call (rows: `curve_frame`)."""
    x = alt.X("order:Q", title="call", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, grid=False))
    y = alt.Y("ratio:Q", title=RATIO, scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", values=DECADES))
    tooltip = [alt.Tooltip("point:N"), alt.Tooltip("kind:N"), alt.Tooltip("written:N", title="error ratio")]
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=list(_KINDS), range=[ACCENT, NEUTRAL]),
        legend=alt.Legend(orient="top", labelLimit=400),
    )
    free = alt.Chart(rows.filter(pl.col("kind") == _KINDS[1]))
    alone = alt.Chart(rows.filter(pl.col("kind") == _KINDS[0]))
    limit = alt.Chart(pl.DataFrame({"ratio": [threshold]}))
    return finished(
        (
            limit.mark_rule(strokeDash=[4, 3], color=NEUTRAL).encode(y=y),
            free.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
            free.mark_point(size=8, opacity=0, filled=True).encode(x=x, y=y, tooltip=tooltip),
            alone.mark_point(filled=True, size=26, opacity=0.9).encode(x=x, y=y, color=colour, tooltip=tooltip),
        ),
        300,
    )


def picture_panel(found: Diagnosis) -> Panel:
    """Error ratios by point and token."""
    rows = picture_frame(found)
    reading = (
        "Each component alone, on the inputs it had. A column is a range of tokens of one request. Tells errors that "
        "grow with the position, begin at one, or strike single requests from those that are everywhere."
    )
    spec = None
    if found.picture is not None and not rows.is_empty():
        spec = picture_chart(rows, found.picture.points, found.picture.columns).to_dict()
    return Panel("picture", "Error ratio by component and token", reading, 6, spec)


def picture_chart(rows: pl.DataFrame, points: tuple[str, ...], columns: tuple[str, ...]) -> alt.LayerChart:
    """Ratios as colours (rows: `picture_frame`), with a line where a request begins."""
    x = alt.X(
        "tokens:N",
        title="request: tokens",
        sort=list(columns),
        scale=alt.Scale(domain=list(columns), paddingInner=0),
        axis=alt.Axis(labelOverlap=True, labelAngle=0, grid=False),
    )
    y = alt.Y("point:N", title=None, sort=list(points), scale=alt.Scale(domain=list(points)))
    colour = alt.Color(
        "ratio:Q",
        title="error ratio",
        scale=alt.Scale(type="log", domain=[1, COLOURED_TO], clamp=True),
        legend=alt.Legend(orient="top", gradientLength=160, gradientThickness=10, values=[1, 3, 10, 30, 100]),
    )
    tooltip = [alt.Tooltip("point:N"), alt.Tooltip("tokens:N"), alt.Tooltip("written:N", title="error ratio")]
    cells = alt.Chart(rows).mark_rect().encode(x=x, y=y, color=colour, tooltip=tooltip)
    begins = [after for before, after in pairwise(columns) if before.split(":")[0] != after.split(":")[0]]
    lines = alt.Chart(pl.DataFrame({"tokens": begins}, schema={"tokens": pl.String()}))
    return finished(
        (cells, lines.mark_rule(color=NEUTRAL, strokeWidth=1.5).encode(x=alt.X("tokens:N", bandPosition=0))),
        max(16 * len(points), 80),
    )
