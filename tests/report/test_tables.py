import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_study import study

from aftershock.report import item_frame, trial_frame
from aftershock.report.tables import csv_text, growth_frame, outcome_frame, rate_frame


def test_one_row_per_trial_with_counts_of_eligible_items(stored):
    frame = trial_frame(stored.trials)
    assert frame["trial"].to_list() == [trial.trial for trial in stored.trials]
    for row, trial in zip(frame.iter_rows(named=True), stored.trials, strict=True):
        assert row["sdc_share"] == trial.sdc_share
        assert row["eligible"] == len(trial.eligible)
        assert row["subtle"] == sum(item.outcome == "subtle" for item in trial.eligible)
        assert row["masked"] + row["benign"] + row["subtle"] + row["distorted"] + row["non_finite"] + row[
            "crash"
        ] == len(trial.eligible)


def test_a_set_that_flips_several_bits_has_no_single_bit(stored):
    trial = stored.trials[0].model_copy(update={"bits": (3, 30)})
    assert trial_frame([trial])["bit"].to_list() == [None]


def test_a_trial_without_eligible_items_has_no_share_and_counts_in_no_rate(stored):
    unreached = tuple(
        item.model_copy(update={"eligible": False, "outcome": "unreached"}) for item in stored.trials[0].items
    )
    trials = [stored.trials[0].model_copy(update={"items": unreached}), *stored.trials[1:]]
    frame = trial_frame(trials)
    assert frame["sdc_share"][0] is None
    pooled = rate_frame(frame, ["site"][:0]).filter(pl.col("site") == "all")
    assert pooled["n"].to_list() == [len(trials) - 1]
    assert set(outcome_frame(frame, []).filter(pl.col("site") == "all")["n"]) == {len(trials) - 1}


def test_one_row_per_trial_and_item(stored):
    frame = item_frame(stored.trials, stored.golden)
    assert len(frame) == sum(len(trial.items) for trial in stored.trials)
    golden = {record.item: record for record in stored.golden}
    row = frame.row(5, named=True)
    assert row["golden_output"] == golden[row["item"]].output
    assert row["kind"] == golden[row["item"]].kind


def test_rates_are_means_over_faults_pooled_and_by_site(stored):
    frame = trial_frame(stored.trials)
    rates = rate_frame(frame, ["component"])
    for row in rates.iter_rows(named=True):
        shares = [
            trial.sdc_share
            for trial in stored.trials
            if trial.component == row["component"] and row["site"] in ("all", trial.site)
        ]
        assert row["n"] == len(shares)
        assert row["estimate"] == pytest.approx(np.mean(shares))
        assert row["low"] <= row["estimate"] <= row["high"]
    assert set(rates["site"]) == {"all", "weight", "activation"}


def test_outcome_shares_of_a_label_add_up_to_one(stored):
    mix = outcome_frame(trial_frame(stored.trials), ["component"])
    totals = mix.group_by("site", "component").agg(pl.col("estimate").sum())
    np.testing.assert_allclose(totals["estimate"].to_numpy(), 1)


def test_error_growth_keeps_zero_and_non_finite_errors_off_the_logarithmic_axis(stored):
    errors = (0.0, 1e-3, float("inf"), float("nan"), 2.0)
    growth = growth_frame([stored.trials[0].model_copy(update={"residual_error": errors})])
    assert growth["depth"].to_list() == [0, 1, 2, 3, 4]
    assert growth["error"].to_list() == [None, 1e-3, None, None, 2.0]
    assert growth["finite"].to_list() == [True, True, False, False, True]


def test_csv_has_one_line_per_row_and_gives_foreign_text_back(stored):
    frame = item_frame(stored.trials, stored.golden).head(2).with_columns(output=pl.Series(['=1+1\n,"x"', None]))
    text = csv_text(frame)
    assert len(text.splitlines()) == 3
    read = pl.read_csv(io.StringIO(text))
    assert not read["output"][0].startswith("=")
    assert json.loads(read["output"][0]) == '=1+1\n,"x"'
    assert read["output"][1] is None


def test_frames_of_no_trials_have_their_columns_and_no_rows():
    empty = study(Path("empty"), trials=0)
    frame = trial_frame(empty.trials)
    assert frame.is_empty()
    assert rate_frame(frame, ["component"]).is_empty()
    assert growth_frame(empty.trials).is_empty()
