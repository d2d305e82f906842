"""The charts of the report: pure functions from frames to Altair charts.

A chart takes its width and its theme (axes, text, colour ramp) from the page that shows it, and listens to one
parameter, `site`, which picks the rows of one kind of site or of all.
"""

from typing import Literal

import altair as alt
import polars as pl

from aftershock.models import COMPONENTS
from aftershock.report.drawing import ACCENT, NEUTRAL, RATE_TOOLTIPS, SHARE, finished, ordered, rate_colour, top
from aftershock.report.tables import ALL_SITES, OUTSIDE
from aftershock.report.wording import rate
from aftershock.study import UNUSED
from aftershock.tasks import OUTCOMES

OUTCOME_COLOURS = {
    "masked": "#98a2ad",
    "benign": "#4fa3a5",
    "subtle": "#eca02f",
    "distorted": "#d9504c",
    "non_finite": "#8d79e0",
    "crash": "#5566cc",
    "unreached": "#98a2ad",
}
"""One colour per outcome, legible on light and on dark."""

STAGES = ("prefill", "first_token", "decode", "persistent")

_CLASS_COLOURS = {"sign": "#8d79e0", "exponent": "#d9504c", "mantissa": "#3d8fc6", "integer": "#3d8fc6"}
_OF_SITE = "datum.site === site"

Floor = tuple[float, float, float]
"""The noise floor of the SDC rate: estimate, low, high."""


def component_chart(rates: pl.DataFrame, floor: Floor | None) -> alt.LayerChart:
    """SDC rate by component (rows: `rate_frame` by component), with the noise floor behind it."""
    rows = ordered(rates["component"], COMPONENTS)
    y = alt.Y("component:N", title=None, scale=alt.Scale(domain=rows))
    x = alt.X("estimate:Q", title="SDC rate", axis=SHARE)
    base = _base(rates)
    tooltip = [alt.Tooltip("component:N"), *RATE_TOOLTIPS]
    bars = base.mark_rule(strokeWidth=2, color=NEUTRAL).encode(x=alt.X("low:Q", title="SDC rate"), x2="high:Q", y=y)
    dots = base.mark_point(filled=True, size=70, color=ACCENT, opacity=1).encode(x=x, y=y, tooltip=tooltip)
    return finished(
        (
            *_floor_line(floor, "x"),
            bars,
            dots,
        ),
        24 * len(rows),
    )


def stage_chart(rates: pl.DataFrame, floor: Floor | None) -> alt.LayerChart:
    """SDC rate by stage (rows: `rate_frame` by stage)."""
    stages = alt.Scale(domain=ordered(rates["stage"], STAGES))
    x = alt.X("stage:N", title=None, scale=stages, axis=alt.Axis(labelAngle=0))
    return _upright(rates, x, "stage", alt.ColorValue(ACCENT), floor)


def layer_chart(rates: pl.DataFrame, floor: Floor | None, layers: int) -> alt.LayerChart:
    """SDC rate by layer (rows: `rate_frame` by layer)."""
    x = alt.X(
        "layer:O",
        title="decoder layer",
        scale=alt.Scale(domain=list(range(layers))),
        axis=alt.Axis(labelAngle=0, labelOverlap=True),
    )
    return _upright(rates, x, "layer", alt.ColorValue(ACCENT), floor)


def bit_chart(rates: pl.DataFrame, floor: Floor | None, bits: int) -> alt.LayerChart:
    """SDC rate by bit position of single-bit faults (rows: `rate_frame` by bit and bit_class); words of `bits` bits."""
    x = alt.X(
        "bit:O",
        title="bit position (the sign on the left, bit 0 least significant)",
        scale=alt.Scale(domain=list(range(bits - 1, -1, -1))),
        axis=alt.Axis(labelAngle=0, labelOverlap=True),
    )
    classes = [name for name in _CLASS_COLOURS if name in set(rates["bit_class"])]
    colour = alt.Color(
        "bit_class:N",
        title=None,
        scale=alt.Scale(domain=classes, range=[_CLASS_COLOURS[name] for name in classes]),
        legend=alt.Legend(orient="top"),
    )
    return _upright(rates, x, "bit", colour, floor)


def field_chart(rates: pl.DataFrame, floor: Floor | None) -> alt.LayerChart:
    """SDC rate by field of stored words, with the bit's class in fields that are numbers (rows: `rate_frame` by
    bit_class)."""
    x = alt.X("bit_class:N", title=None, axis=alt.Axis(labelAngle=0))
    return _upright(rates, x, "bit_class", alt.ColorValue(ACCENT), floor)


def use_chart(rates: pl.DataFrame, floor: Floor | None) -> alt.LayerChart:
    """SDC rate by how often the struck expert is chosen (rows: `rate_frame` by use)."""
    classes = sorted(set(rates["use"]), key=lambda name: (name != UNUSED, name))
    x = alt.X("use:N", title="share of tokens that choose the expert", sort=classes, axis=alt.Axis(labelAngle=0))
    return _upright(rates, x, "use", alt.ColorValue(ACCENT), floor)


def outcome_chart(shares: pl.DataFrame) -> alt.LayerChart:
    """Outcome mix by component (rows: `outcome_frame` by component), without masked: the bar is what changed."""
    changed = shares.filter(pl.col("outcome") != "masked").with_columns(
        rank=pl.col("outcome").map_elements(OUTCOMES.index, return_dtype=pl.Int64())
    )
    rows = ordered(changed["component"], COMPONENTS)
    largest = top(changed.group_by("site", "component").agg(pl.col("estimate").sum())["estimate"])
    shown = [outcome for outcome in OUTCOMES if outcome in set(changed["outcome"])]
    chosen = alt.selection_point(fields=["outcome"], bind="legend", name="outcome_chosen")
    chart = (
        _base(changed)
        .mark_bar()
        .encode(
            x=alt.X(
                "estimate:Q",
                title="share of eligible items, mean over faults",
                scale=alt.Scale(domain=[0, largest]),
                axis=SHARE,
            ),
            y=alt.Y("component:N", title=None, scale=alt.Scale(domain=rows)),
            color=alt.Color(
                "outcome:N",
                title=None,
                scale=alt.Scale(domain=shown, range=[OUTCOME_COLOURS[outcome] for outcome in shown]),
                legend=alt.Legend(orient="top"),
            ),
            order=alt.Order("rank:Q"),
            opacity=alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.12)),
            tooltip=[
                alt.Tooltip("component:N"),
                alt.Tooltip("outcome:N"),
                alt.Tooltip("written:N", title="share, 95 % interval"),
                alt.Tooltip("n:Q", title="faults"),
            ],
        )
        .add_params(chosen)
    )
    return finished((chart,), 24 * len(rows))


def heatmap(rates: pl.DataFrame, layers: int) -> alt.LayerChart:
    """SDC rate by component and layer (rows: `rate_frame` by component and layer label).

    The number in a cell is its number of faults; a cell that no fault hit is an empty outline, not a zero.
    """
    columns = [OUTSIDE, *map(str, range(layers))]
    rows = ordered(rates["component"], COMPONENTS)
    largest = top(rates.filter(pl.col("site") == ALL_SITES)["estimate"])
    grid = pl.DataFrame({"component": rows}).join(pl.DataFrame({"layer": columns}), how="cross")
    x = alt.X(
        "layer:N",
        title="decoder layer",
        scale=alt.Scale(domain=columns),
        axis=alt.Axis(labelAngle=0, labelOverlap=True),
    )
    y = alt.Y("component:N", title=None, scale=alt.Scale(domain=rows))
    empty = alt.Chart(grid).mark_rect(filled=False, stroke=NEUTRAL, strokeOpacity=0.25, strokeWidth=1).encode(x=x, y=y)
    base = _base(rates)
    cells = base.mark_rect(stroke=NEUTRAL, strokeOpacity=0.35, strokeWidth=0.5).encode(
        x=x,
        y=y,
        color=rate_colour(largest),
        tooltip=[alt.Tooltip("component:N"), alt.Tooltip("layer:N"), *RATE_TOOLTIPS],
    )
    counts = base.mark_text(fontSize=9, opacity=0.75).encode(x=x, y=y, text=alt.Text("n:Q"))
    on_dark = (
        base.transform_filter(f"datum.estimate > {0.6 * largest}")
        .mark_text(fontSize=9, color="white")
        .encode(x=x, y=y, text=alt.Text("n:Q"))
    )
    return finished(
        (
            empty,
            cells,
            counts,
            on_dark,
        ),
        22 * len(rows),
    )


def growth_chart(growth: pl.DataFrame) -> alt.LayerChart:
    """Relative error of the residual stream by depth (rows: `growth_frame`): one line a trial, and their median.

    Crosses on the top edge are depths at which the error was no longer finite.
    """
    finite = growth.filter(pl.col("error").is_not_null())
    lost = growth.filter(~pl.col("finite"))
    pooled = pl.concat([finite.with_columns(site=pl.lit(ALL_SITES)), finite])
    median = pooled.group_by("site", "depth").agg(pl.col("error").median(), n=pl.len()).sort("site", "depth")
    pointed = alt.selection_point(fields=["trial"], on="pointerover", clear="pointerout", empty=False, name="pointed")
    x = alt.X(
        "depth:Q",
        title="depth: 0 is the embedding, d the output of layer d − 1",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(zero=True, nice=False),
    )
    y = alt.Y(
        "error:Q",
        title="relative error of the residual stream",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(format=".0e", tickCount=6),
    )
    colour = alt.Color(
        "outcome:N",
        title="worst outcome",
        scale=alt.Scale(domain=list(OUTCOMES), range=[OUTCOME_COLOURS[one] for one in OUTCOMES]),
        legend=alt.Legend(orient="top", symbolOpacity=1, symbolStrokeWidth=2.5),
    )
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("trial", "fault", "outcome")]
    of_site = f"site === '{ALL_SITES}' || {_OF_SITE}"
    lines = (
        alt.Chart(finite)
        .transform_filter(of_site)
        .mark_line(interpolate="linear")
        .encode(
            x=x,
            y=y,
            detail="trial:N",
            color=colour,
            opacity=alt.when(pointed).then(alt.value(1)).otherwise(alt.value(0.6)),
            strokeWidth=alt.when(pointed).then(alt.value(3)).otherwise(alt.value(1.2)),
            tooltip=[*tooltip, alt.Tooltip("depth:Q"), alt.Tooltip("error:Q", format=".3g")],
        )
        .add_params(pointed)
    )
    middle = (
        _base(median)
        .mark_line(strokeWidth=3, strokeDash=[6, 3], color=NEUTRAL)
        .encode(x=x, y=y, tooltip=[alt.Tooltip("error:Q", title="median", format=".3g"), alt.Tooltip("n:Q")])
    )
    crosses = (
        alt.Chart(lost)
        .transform_filter(of_site)
        .mark_point(shape="cross", size=40, filled=True)
        .encode(x=x, y=alt.value(0), color=colour, tooltip=[*tooltip, alt.Tooltip("depth:Q")])
    )
    return finished(
        (
            lines,
            middle,
            *(() if lost.is_empty() else (crosses,)),
        ),
        320,
    )


def _upright(
    rates: pl.DataFrame, x: alt.X, label: str, colour: alt.Color | alt.ColorValue, floor: Floor | None
) -> alt.LayerChart:
    """Points with vertical intervals over the categories of `x`."""
    base = _base(rates)
    tooltip = [alt.Tooltip(f"{label}:N", title=label), *RATE_TOOLTIPS]
    y = alt.Y("estimate:Q", title="SDC rate", axis=SHARE)
    bars = base.mark_rule(strokeWidth=2, color=NEUTRAL).encode(x=x, y=alt.Y("low:Q", title="SDC rate"), y2="high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    return finished(
        (
            *_floor_line(floor, "y"),
            bars,
            dots,
        ),
        240,
    )


def _floor_line(floor: Floor | None, axis: Literal["x", "y"]) -> tuple[alt.Chart, ...]:
    """The noise floor as a dashed line across the axis of rates; its interval is under the pointer."""
    if floor is None:
        return ()
    channel = alt.X if axis == "x" else alt.Y
    tooltip = alt.Tooltip("written:N", title="noise floor, 95 % interval")
    line = alt.Chart(pl.DataFrame({"estimate": [floor[0]], "written": [rate(*floor)]})).mark_rule(
        color=NEUTRAL, strokeDash=[4, 3], strokeWidth=1.5
    )
    return (line.encode(**{axis: channel("estimate:Q", title="SDC rate")}, tooltip=tooltip),)


def _base(rows: pl.DataFrame) -> alt.Chart:
    return alt.Chart(rows).transform_filter(_OF_SITE)
