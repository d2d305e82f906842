"""Charts of critical regions and of losses against voltage."""

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from aftershock.errors import InputError
from aftershock.hardware import CriticalRegion
from aftershock.protect import FittedRegion, GridPoint
from aftershock.report import VoltageLoss, region_chart, voltage_chart, write_charts

POINTS = (
    GridPoint(12, 0, (0.0, 0.1), True),
    GridPoint(20, 0, (inf,), False),
    GridPoint(10, 4, (0.2, 0.2), True),
    GridPoint(16, 4, (4.0,), False),
)


def fitted(theta: float) -> FittedRegion:
    return FittedRegion("k", CriticalRegion(2.0, 30.0, theta), 8, 18.0, POINTS)


def rows(chart: Any, layer: int) -> list[dict[str, Any]]:
    """The rows that a layer of a chart draws."""
    drawn = json.loads(chart.to_json())
    found: list[dict[str, Any]] = drawn["datasets"][drawn["layer"][layer]["data"]["name"]]
    return found


def test_a_region_is_drawn_with_its_points() -> None:
    chart = region_chart(fitted(-inf))
    points = rows(chart, 0)
    assert [(row["msd"], row["frequency"], row["verdict"]) for row in points] == [
        (12, 0, "acceptable"),
        (20, 0, "harmful"),
        (14, 4, "acceptable"),
        (20, 4, "harmful"),
    ]
    assert [row["step"] for row in points] == ["below 0.1", "10 and more", "0.1 to 0.3", "1 to 10"]
    assert points[1]["loss"] == 1e6
    assert points[3]["loss"] == 4.0


@pytest.mark.parametrize(("theta", "bottom"), [(-inf, -0.5), (1.5, 1.5)])
def test_the_border_lies_on_both_lines_of_the_region(theta: float, bottom: float) -> None:
    border = rows(region_chart(fitted(theta)), 1)
    assert border[0]["frequency"] == border[1]["frequency"] == bottom
    for corner in border[1:]:
        assert corner["frequency"] == pytest.approx(2.0 * corner["msd"] - 30.0)
    assert border[2]["frequency"] == 4.5


def test_losses_are_drawn_against_voltage() -> None:
    chart = voltage_chart("k", [VoltageLoss(0.8, inf, 0.1), VoltageLoss(0.84, 2.0, -0.5)])
    drawn = rows(chart, 0)
    assert [row["no protection"] for row in drawn] == [1e6, 2.0]
    assert [row["statistical ABFT"] for row in drawn] == [0.1, 0.01]
    with pytest.raises(InputError, match="no losses of k"):
        voltage_chart("k", [])


def test_charts_are_written_as_pictures(tmp_path: Path) -> None:
    charts = [region_chart(fitted(1.5)), voltage_chart("k", [VoltageLoss(0.8, 3.0, 0.1)])]
    write_charts(charts, tmp_path / "charts.png")
    assert (tmp_path / "charts.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="neither a PNG nor an SVG"):
        write_charts(charts, tmp_path / "charts.pdf")
    with pytest.raises(InputError, match="no charts"):
        write_charts([], tmp_path / "charts.png")
    with pytest.raises(InputError, match="can't be written"):
        write_charts(charts, tmp_path / "absent" / "charts.svg")
