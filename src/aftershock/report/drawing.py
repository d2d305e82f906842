"""What the charts of the report share: marks, axes, and how a chart fits into the page."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from aftershock.report.tables import ALL_SITES

ACCENT = "#d9504c"
NEUTRAL = "#8a94a0"
SHARE = alt.Axis(format="~%", tickCount=6)
RATE_TOOLTIPS = (
    alt.Tooltip("written:N", title="SDC rate, 95 % interval"),
    alt.Tooltip("n:Q", title="faults"),
)


def finished(layers: Sequence[alt.Chart], height: int) -> alt.LayerChart:
    """The layers as a chart as wide as the page lets it be, `height` pixels high, that listens to `site`."""
    site = alt.param(name="site", value=ALL_SITES)
    autosize = alt.AutoSizeParams(type="fit-x", contains="padding")
    return (
        alt.LayerChart(layer=list(layers))
        .add_params(site)
        .properties(width="container", height=height, autosize=autosize)
    )


def top(shares: pl.Series) -> float:
    """Where an axis of shares ends: at the largest, at 1 % where there is none above zero."""
    return max(shares.to_list(), default=0.0) or 0.01


def ordered(values: pl.Series, order: Sequence[str]) -> list[str]:
    """The distinct values, those of `order` first and in its order."""
    found = sorted(set(values))
    return [value for value in order if value in found] + [value for value in found if value not in order]


def rate_colour(largest: float) -> alt.Color:
    """The colour of a cell of a map by its rate, up to the largest one."""
    return alt.Color(
        "estimate:Q",
        title="SDC rate",
        scale=alt.Scale(domain=[0, largest], clamp=True),
        legend=alt.Legend(orient="top", format="~%", gradientLength=160, gradientThickness=10),
    )
