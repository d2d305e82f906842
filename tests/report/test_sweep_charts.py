"""What a report shows of sweeps: panels, their rows, and the tables."""

import dataclasses
import math

import altair as alt
import pytest

from aftershock.report import markdown, page
from aftershock.report.content import content
from aftershock.report.sweep_charts import sweep_panels
from aftershock.report.wording import rate
from aftershock.study import summarise
from swept_study import swept_study

FAULTS = {"sites": ["weight"], "draw": "uniform"}
RATES = [1e-6, 1e-5, 1e-4]
COMPONENTS = [["q"], ["gate", "up"], ["norm"]]
LAYERS = ["0-1", "2-7", "8-15"]


def lost(values):
    errors = 2e5 * values.get("rate", 1e-5)
    return 0.8 * (1 - math.exp(-errors / 10)), errors


def swept(**sweep):
    return swept_study(FAULTS, sweep, lost, trials_each=3, items=8)


@pytest.fixture(scope="module")
def crossed():
    study = swept(components=COMPONENTS, layers=LAYERS, rate=RATES)
    return study, summarise(study)


def rows_of(spec):
    return [row for rows in spec["datasets"].values() for row in rows if "low" in row]


def panels_of(study):
    return {panel.name: panel for panel in sweep_panels(summarise(study))}


def test_rates_crossed_with_one_key_are_two_charts_with_a_line_for_each_value():
    found = panels_of(swept(components=COMPONENTS, rate=RATES))
    assert list(found) == ["curves-0-rate", "curves-0-errors"]
    assert found["curves-0-rate"].title == "Accuracy by rate"
    for panel in found.values():
        alt.LayerChart.from_dict(panel.spec)
        assert {"name": "site", "value": "all"} in panel.spec["params"]
        rows = rows_of(panel.spec)
        assert {row["group"] for row in rows} == {"q", "gate up", "norm"}
        assert all(row["low"] <= row["estimate"] <= row["high"] and row["n"] == 3 for row in rows)
        assert panel.spec["layer"][0]["encoding"]["y"]["field"] == "estimate"
    by_rate = rows_of(found["curves-0-rate"].spec)
    assert [row["rate"] for row in by_rate] == RATES * 3
    scale = found["curves-0-rate"].spec["layer"][1]["encoding"]["x"]["scale"]
    assert scale == {"domain": [1e-6, 1e-4], "type": "log"}
    assert all(row["errors"] > 0 for row in rows_of(found["curves-0-errors"].spec))


def test_rates_crossed_with_two_keys_have_charts_for_each_value_of_the_first(crossed):
    _, summary = crossed
    found = list(sweep_panels(summary))
    assert [panel.name for panel in found] == [f"curves-{n}-{axis}" for n in range(3) for axis in ("rate", "errors")]
    assert found[2].title == "components = gate up: accuracy by rate"
    assert {row["group"] for row in rows_of(found[2].spec)} == set(LAYERS)


def test_a_sweep_over_counts_has_the_chart_by_errors_alone():
    study = swept_study(FAULTS, {"count": [1, 10]}, lambda v: (0.2, v["count"]), trials_each=3, referenced=False)
    (panel,) = panels_of(study).values()
    assert panel.name == "curves-0-errors"
    assert panel.title == "Answers that are neither SDC nor DUE by injected errors"
    assert {row["group"] for row in rows_of(panel.spec)} == {"all"}


def test_one_other_key_is_dots_and_two_are_a_map():
    (dots,) = panels_of(swept(components=COMPONENTS)).values()
    alt.LayerChart.from_dict(dots.spec)
    assert [row["components"] for row in rows_of(dots.spec)] == ["q", "gate up", "norm"]
    (cells,) = panels_of(swept(components=COMPONENTS, layers=LAYERS)).values()
    alt.LayerChart.from_dict(cells.spec)
    rows = rows_of(cells.spec)
    assert len(rows) == 9
    assert all(row["low"] <= row["estimate"] <= row["high"] and row["short"] in row["written"] for row in rows)
    assert cells.spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == ["q", "gate up", "norm"]


def test_three_other_keys_are_a_map_for_each_value_of_the_first_on_one_scale():
    study = swept_study(
        FAULTS,
        {"components": COMPONENTS[:2], "layers": LAYERS[:2], "bit_classes": [["sign"], ["exponent"]]},
        lambda values: (0.9 if values["components"] == ["q"] else 0.1, 1.0),
        trials_each=3,
    )
    one, other = panels_of(study).values()
    assert one.title == "components = q: SDC rate by layers and bit_classes"
    assert other.title == "components = gate up: SDC rate by layers and bit_classes"
    assert {row["components"] for row in rows_of(other.spec)} == {"gate up"}
    scales = [panel.spec["layer"][0]["encoding"]["color"]["scale"] for panel in (one, other)]
    largest = max(row["estimate"] for row in rows_of(one.spec))
    assert [scale["domain"] for scale in scales] == [[0, largest]] * 2
    assert max(row["estimate"] for row in rows_of(other.spec)) < largest


def test_a_study_without_a_sweep_has_no_panels(stored, summary):
    assert list(sweep_panels(summary)) == []
    assert content(stored, summary).sweep is None


def test_page_and_markdown_say_the_measures_and_their_weights(crossed):
    study, summary = crossed
    html, text = page(study, summary), markdown(study, summary)
    for said in ("How fast it falls", "all severities weigh the same", "Degradation model", "Held-out combinations"):
        assert said in html
        assert said in text
    assert html.count('data-chart="curves-') == 6
    curve = summary.curves[0]
    half = content(study, summary).sweep.tables[0].rows[0]
    assert half[:2] == ("q", "0-1")
    assert f"{100 * curve.by_rate.awrcl[0]:.1f}" in half[3] or f"{100 * curve.by_rate.awrcl[0]:.2f}" in half[3]
    model = content(study, summary).sweep.tables[1]
    assert [row[0].split(":")[0] for row in model.rows][:3] == ["S of q", "S of gate up", "S of norm"]


def test_a_term_that_is_not_told_apart_says_so():
    study = swept(components=COMPONENTS, layers=["0-7", "8-15"], rate=RATES)
    terms = content(study, summarise(study)).sweep.tables[1].rows
    assert ("r, redundancy: (N / smallest N)^-r", "not told apart from S", "") in terms


def test_a_sweep_that_has_just_begun_still_has_a_page(crossed):
    study, _ = crossed
    begun = dataclasses.replace(study, trials=study.trials[:1])
    summary = summarise(begun)
    assert "Combination by combination" in page(begun, summary)
    assert "Combination by combination" in markdown(begun, summary)


def test_tables_have_what_is_lost_of_every_combination(crossed):
    study, summary = crossed
    rows = content(study, summary).sweep.rows
    for row, one in zip(rows, summary.sweep, strict=True):
        assert row.lost == rate(one.lost.estimate, one.lost.low, one.lost.high)
        assert one.lost.estimate == pytest.approx(one.sdc.estimate + one.due.estimate)
    assert len({row.lost for row in rows}) > 3
    assert "| lost |" in markdown(study, summary)
