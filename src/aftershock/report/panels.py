"""Which charts a report has, what each is titled, and how to read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from aftershock.numerics import INT32, format_of
from aftershock.report.charts import (
    Floor,
    bit_chart,
    component_chart,
    field_chart,
    growth_chart,
    heatmap,
    layer_chart,
    outcome_chart,
    stage_chart,
    use_chart,
)
from aftershock.report.tables import OUTSIDE, growth_frame, outcome_frame, rate_frame
from aftershock.study import Environment, TrialRecord

TRACED_LINES = 48
"""Most trials drawn as lines in the chart of error growth, taken evenly."""


@dataclass(frozen=True)
class Panel:
    """One chart: `span` of the page's six columns, `spec` its Vega-Lite specification, None with nothing to draw."""

    name: str
    title: str
    reading: str
    span: int
    spec: dict[str, Any] | None


def panels(
    trials: pl.DataFrame, records: tuple[TrialRecord, ...], environment: Environment, floor: Floor | None
) -> Iterator[Panel]:
    """Every panel of the page, in its order."""
    by_component = rate_frame(trials, ["component"])
    yield Panel(
        "component",
        "SDC rate by component",
        "Point and 95 % interval over faults. The dashed line is the noise floor.",
        3,
        _spec(by_component, component_chart(by_component, floor)),
    )
    mix = outcome_frame(trials, ["component"])
    yield Panel(
        "outcomes",
        "What became of the answers",
        "The bar is what did not stay masked. Click a legend entry to single it out.",
        3,
        _spec(mix, outcome_chart(mix)),
    )
    cells = rate_frame(trials.with_columns(pl.col("layer").cast(pl.String).fill_null(OUTSIDE)), ["component", "layer"])
    yield Panel(
        "heatmap",
        "SDC rate by component and layer",
        f"Each cell says how many faults hit it; an outline without a number was never hit. {OUTSIDE} is what lies "
        "in no single layer. Few faults make an uncertain cell: the interval is under the pointer. Click a cell to "
        "list its faulty answers below.",
        6,
        _spec(cells, heatmap(cells, environment.layers)),
    )
    by_layer = rate_frame(trials, ["layer"])
    yield Panel(
        "layer",
        "SDC rate by layer",
        "All components of a decoder layer together.",
        6,
        _spec(by_layer, layer_chart(by_layer, floor, environment.layers)),
    )
    yield _bit_panel(trials, environment, floor)
    by_stage = rate_frame(trials, ["stage"])
    yield Panel(
        "stage",
        "SDC rate by stage",
        "Transient faults by the stage they struck in; persistent faults on their own.",
        2,
        _spec(by_stage, stage_chart(by_stage, floor)),
    )
    by_use = rate_frame(trials.filter(pl.col("use").is_not_null()), ["use"])
    if not by_use.is_empty():
        yield Panel(
            "use",
            "SDC rate by how often the expert is chosen",
            "Faults in weights of experts, by the share of the task's tokens that golden runs send through the expert.",
            6,
            _spec(by_use, use_chart(by_use, floor)),
        )
    traced = tuple(record for record in records if record.residual_error is not None)
    growth = growth_frame(traced[:: -(-len(traced) // TRACED_LINES) or 1])
    yield Panel(
        "growth",
        "How the error grows through the layers",
        f"{growth['trial'].n_unique():,} traced trials, the largest error over their items; dashed: the median of "
        "those already struck. A cross on the top edge is no longer finite. Lines begin where the "
        "fault struck.",
        6,
        _spec(growth, growth_chart(growth)),
    )


def _bit_panel(trials: pl.DataFrame, environment: Environment, floor: Floor | None) -> Panel:
    """By bit of the model's own words, or of sums where they alone were struck; by field of a packed format's."""
    struck = set(trials["site"]) - {"none"}
    if struck == {"stored"}:
        by_field = rate_frame(trials, ["bit_class"])
        return Panel(
            "bit",
            "SDC rate by field of the stored words",
            "What a packed weight is stored as; in fields that are numbers by the class of the bit.",
            4,
            _spec(by_field, field_chart(by_field, floor)),
        )
    sums = struck == {"accumulator"}
    of_one_kind = trials if sums else trials.filter(pl.col("site") != "accumulator")
    by_bit = rate_frame(of_one_kind, ["bit", "bit_class"])
    words = INT32 if sums else format_of(environment.dtype)
    return Panel(
        "bit",
        "SDC rate by bit position",
        f"Faults that change one bit of a {words.name} word.",
        4,
        _spec(by_bit, bit_chart(by_bit, floor, words.bits)),
    )


def _spec(rows: pl.DataFrame, chart: alt.LayerChart) -> dict[str, Any] | None:
    return None if rows.is_empty() else chart.to_dict()
