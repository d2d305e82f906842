"""Charts of statistical ABFT: a critical region with the points that it was fitted to, and losses against voltage."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

import altair as alt
import polars as pl
import vl_convert

from aftershock.errors import InputError
from aftershock.files import replace_file
from aftershock.protect import FittedRegion
from aftershock.report.drawing import ACCENT, NEUTRAL

_STEPS = (0.1, 0.3, 1.0, 10.0)
"""Losses in perplexity between which the colour changes."""

_COLOURS = {
    "below 0.1": "#3d8fc6",
    "0.1 to 0.3": "#8fc1df",
    "0.3 to 1": "#f2c078",
    "1 to 10": "#e5813f",
    "10 and more": "#a5302c",
}
_PROTECTED = "#3d8fc6"
_LEAST_LOSS, _LARGEST_LOSS = 0.01, 1e6
"""What a logarithmic axis of losses shows."""


@dataclass(frozen=True)
class VoltageLoss:
    """Mean loss in perplexity at a voltage, in volts, without protection and with statistical ABFT."""

    voltage: float
    unprotected: float
    statistical: float


def region_chart(fitted: FittedRegion) -> alt.LayerChart:
    """The points of a fit, coloured by their mean loss, and the border of the critical region, in the plane of
    (log2 MSD, log2 frequency) of ReaLM's figure."""
    rows = pl.DataFrame(
        {
            "msd": [point.log_msd for point in fitted.points],
            "frequency": [point.log_frequency for point in fitted.points],
            "loss": [min(fmean(point.losses), _LARGEST_LOSS) for point in fitted.points],
            "step": [list(_COLOURS)[bisect(_STEPS, fmean(point.losses))] for point in fitted.points],
            "verdict": ["acceptable" if point.acceptable else "harmful" for point in fitted.points],
        }
    )
    x = alt.X("msd:Q", title="log2 MSD", scale=alt.Scale(zero=False))
    y = alt.Y("frequency:Q", title="log2 frequency", axis=alt.Axis(tickMinStep=1))
    points = (
        alt.Chart(rows)
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "step:N",
                title="loss in perplexity",
                scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
            ),
            shape=alt.Shape(
                "verdict:N",
                title=None,
                scale=alt.Scale(domain=["acceptable", "harmful"], range=["circle", "square"]),
            ),
            tooltip=["msd:Q", "frequency:Q", "loss:Q", "verdict:N"],
        )
    )
    border = alt.Chart(_border(fitted)).mark_line(color=ACCENT, strokeWidth=2).encode(x=x, y=y, order="step:Q")
    return alt.LayerChart(layer=[points, border]).properties(
        width=420, height=260, title=f"{fitted.component}: critical to the right of the line"
    )


def voltage_chart(component: str, losses: Sequence[VoltageLoss]) -> alt.LayerChart:
    """Loss against voltage without protection and with statistical ABFT, and what lies between them; the loss that is
    accepted, 0.3 perplexity, dashed. Losses are drawn from 0.01 on. Raises InputError where there are none."""
    if not losses:
        raise InputError(f"there are no losses of {component} to draw: measure some voltages first")
    rows = pl.DataFrame(
        {
            "voltage": [one.voltage for one in losses],
            "no protection": [_drawn(one.unprotected) for one in losses],
            "statistical ABFT": [_drawn(one.statistical) for one in losses],
        }
    )
    x = alt.X("voltage:Q", title="supply voltage (V)", scale=alt.Scale(zero=False, reverse=True))
    scale = alt.Scale(type="log", domain=[_LEAST_LOSS, max(1.0, *rows["no protection"], *rows["statistical ABFT"])])
    y = alt.Y("loss:Q", title="loss in perplexity", scale=scale, axis=alt.Axis(tickCount=6, format="~g"))
    between = (
        alt.Chart(rows)
        .mark_area(opacity=0.18, color=NEUTRAL)
        .encode(x=x, y=alt.Y("no protection:Q", title="loss in perplexity", scale=scale), y2="statistical ABFT:Q")
    )
    curves = rows.unpivot(index="voltage", variable_name="scheme", value_name="loss")
    lines = (
        alt.Chart(curves)
        .mark_line(point=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "scheme:N",
                title=None,
                scale=alt.Scale(domain=["no protection", "statistical ABFT"], range=[ACCENT, _PROTECTED]),
                legend=alt.Legend(orient="top"),
            ),
        )
    )
    accepted = alt.Chart(pl.DataFrame({"loss": [0.3]})).mark_rule(strokeDash=[4, 3], color=NEUTRAL).encode(y=y)
    return alt.LayerChart(layer=[between, accepted, lines]).properties(width=420, height=240, title=component)


def write_charts(charts: Sequence[alt.LayerChart], path: Path, columns: int = 3) -> None:
    """Write charts as one picture, PNG or SVG by the path's ending, side by side in rows of `columns`;
    replaced whole or not at all.

    Raises InputError for another ending, without charts, and where the file can't be written.
    """
    if not charts:
        raise InputError(f"there are no charts to write to {path}: give at least one")
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path} is neither a PNG nor an SVG: give it one of these endings")
    together = alt.concat(*charts, columns=columns).resolve_scale(color="shared", shape="shared").to_json()
    convert = vl_convert.vegalite_to_png if path.suffix == ".png" else vl_convert.vegalite_to_svg
    try:
        replace_file(path, convert(together))
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}): give another path") from error


def _border(fitted: FittedRegion) -> pl.DataFrame:
    """The corners of a region's border within the grid: along theta_freq, then up the inclined line."""
    region, across = fitted.region, [point.log_msd for point in fitted.points]
    bottom = region.theta_freq if isfinite(region.theta_freq) else -0.5
    top = max(point.log_frequency for point in fitted.points) + 0.5
    corners = [(max(across) + 1.0, bottom), ((bottom + region.b) / region.a, bottom)]
    if top > bottom:
        corners.append(((top + region.b) / region.a, top))
    return pl.DataFrame(
        {"msd": [x for x, _ in corners], "frequency": [y for _, y in corners], "step": range(len(corners))}
    )


def _drawn(loss: float) -> float:
    return min(max(loss, _LEAST_LOSS), _LARGEST_LOSS)
