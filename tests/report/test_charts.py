from collections.abc import Iterator

import polars as pl
import pytest

from aftershock.report.charts import heatmap
from aftershock.report.panels import panels
from aftershock.report.tables import OUTCOMES, trial_frame
from aftershock.study import TrialRecord

FLOOR = (0.01, 0.0, 0.03)


def drawn(stored, trials: tuple[TrialRecord, ...]):
    return {panel.name: panel for panel in panels(trial_frame(trials), trials, stored.environment, FLOOR)}


@pytest.fixture(scope="module")
def charts(stored):
    return drawn(stored, stored.trials)


def rows_of(spec: dict) -> Iterator[dict]:
    for rows in spec["datasets"].values():
        yield from rows


def test_every_chart_listens_to_the_site_and_takes_its_width_from_the_page(charts):
    assert list(charts) == ["component", "outcomes", "heatmap", "layer", "bit", "stage", "growth"]
    for panel in charts.values():
        assert panel.spec is not None
        assert panel.spec["width"] == "container"
        assert {"name": "site", "value": "all"} in panel.spec["params"]


@pytest.mark.parametrize("name", ["component", "heatmap", "layer", "bit", "stage", "outcomes"])
def test_every_drawn_rate_has_its_interval_and_its_number_of_faults(charts, name):
    rates = [row for row in rows_of(charts[name].spec) if "site" in row]
    assert rates
    for row in rates:
        assert row["low"] <= row["estimate"] <= row["high"]
        assert row["n"] >= 1
        assert "[" in row["written"]


def test_cells_that_no_fault_hit_are_in_the_grid_but_have_no_rate():
    rates = pl.DataFrame(
        {"site": ["all"], "component": ["q"], "layer": ["1"], "estimate": [0.0], "low": [0.0], "high": [0.5]}
    ).with_columns(n=pl.lit(3), written=pl.lit("0 % [0, 50]"))
    rows = list(rows_of(heatmap(rates, layers=3).to_dict()))
    grid = {row["layer"] for row in rows if "estimate" not in row}
    assert grid == {"–", "0", "1", "2"}
    assert [row["layer"] for row in rows if "estimate" in row] == ["1"]


def test_the_bit_axis_shows_every_bit_of_the_format_whether_hit_or_not(stored):
    spec = drawn(stored, stored.trials[:3])["bit"].spec
    domains = [layer["encoding"]["x"]["scale"]["domain"] for layer in spec["layer"] if "x" in layer["encoding"]]
    assert domains == [list(range(31, -1, -1))] * 2


@pytest.mark.parametrize("name", ["component", "layer", "bit", "stage"])
def test_the_noise_floor_is_drawn_and_says_its_interval(charts, name):
    floors = [row for row in rows_of(charts[name].spec) if "site" not in row]
    assert [row["estimate"] for row in floors] == [FLOOR[0]]
    assert floors[0]["written"].endswith("[0, 3.00]")


def test_a_study_in_which_nothing_happened_draws_zero_as_zero(stored):
    calm = tuple(
        trial.model_copy(update={"items": tuple(item.model_copy(update={"outcome": "masked"}) for item in trial.items)})
        for trial in stored.trials[:20]
    )
    cells = drawn(stored, calm)["heatmap"].spec["layer"][1]["encoding"]["color"]
    assert cells["scale"]["domain"] == [0, 0.01]


def test_a_chart_without_data_has_no_specification(stored):
    multi_bit = tuple(trial.model_copy(update={"bits": (1, 2), "residual_error": None}) for trial in stored.trials[:8])
    charts = drawn(stored, multi_bit)
    assert charts["bit"].spec is None
    assert charts["growth"].spec is None
    assert charts["component"].spec is not None


def test_a_study_without_trials_has_no_charts_and_no_errors(stored):
    assert {panel.spec for panel in drawn(stored, ()).values()} == {None}


def test_outcome_chart_leaves_masked_out(charts):
    shown = {row["outcome"] for row in rows_of(charts["outcomes"].spec)}
    assert shown == set(OUTCOMES) - {"masked", "unreached"}


def test_error_growth_copes_with_errors_that_are_not_finite(stored):
    trial = stored.trials[0].model_copy(update={"residual_error": (0.0, 1e-3, float("nan"), float("inf"))})
    rows = list(rows_of(drawn(stored, (trial,))["growth"].spec))
    assert {row["depth"] for row in rows if not row.get("finite", True)} == {2, 3}
    assert all(row["error"] is None or 0 < row["error"] < float("inf") for row in rows)


def test_bits_of_packed_words_are_shown_by_field_and_those_of_sums_by_place(stored):
    def with_labels(**labels):
        return tuple(trial.model_copy(update=labels) for trial in stored.trials[:40])

    packed = drawn(stored, with_labels(site="stored", bits=(), bit_class="scale exponent"))["bit"]
    assert packed.title == "SDC rate by field of the stored words"
    assert {row["bit_class"] for row in rows_of(packed.spec) if "bit_class" in row} == {"scale exponent"}
    mixed = with_labels(site="stored", bits=(), bit_class="quant")[:1] + with_labels(site="weight")[1:]
    assert "float32" in drawn(stored, mixed)["bit"].reading
    beside = with_labels(site="weight", bits=(3,), bit_class="mantissa")[:-1]
    beside += with_labels(site="accumulator", bits=(30,), bit_class="integer")[-1:]
    assert {row["bit"] for row in rows_of(drawn(stored, beside)["bit"].spec) if "bit" in row} == {3}
    sums = drawn(stored, with_labels(site="accumulator", bits=(30,), bit_class="integer"))["bit"]
    assert "int32" in sums.reading
    assert {(row["bit"], row["bit_class"]) for row in rows_of(sums.spec) if "bit" in row} == {(30, "integer")}


def test_experts_are_charted_by_how_often_they_are_chosen(stored):
    uses = [0.0, 0.05, 0.31, 0.31, 1.0]
    trials = tuple(
        trial.model_copy(update={"component": "expert", "expert": 3, "expert_use": use})
        for trial, use in zip(stored.trials, uses, strict=False)
    )
    rows = [row for row in rows_of(drawn(stored, (*trials, *stored.trials[5:9]))["use"].spec) if "site" in row]
    assert {row["use"]: row["n"] for row in rows if row["site"] == "all"} == {
        "never": 1,
        "0.0 to 0.1": 1,
        "0.3 to 0.4": 2,
        "0.9 to 1.0": 1,
    }
