"""Whether the components that write into the residual stream lose more than all others."""

import numpy as np
import pytest

from aftershock.study import Summary, summarise
from aftershock.study.sensitivity import sensitivity
from swept_study import swept_study

FAULTS = {"sites": ["accumulator"], "draw": "uniform"}
RATES = [1e-6, 1.0001e-6]


def study_of(losses: dict[str, float], trials_each: int = 30, sweep: dict | None = None):
    swept = {"components": [[name] for name in losses], "rate": RATES} if sweep is None else sweep
    return swept_study(
        FAULTS,
        swept,
        lambda values: (min(1.0, losses[values["components"][0]] * values["rate"] / 1e-6), 10 * values["rate"] / 1e-6),
        trials_each,
        items=40,
    )


def test_it_holds_where_every_sensitive_component_loses_more() -> None:
    found = sensitivity(study_of({"q": 0.05, "v": 0.1, "o": 0.6, "down": 0.4}))
    assert found.verdict == "holds"
    assert (found.sensitive, found.resilient) == (("o", "down"), ("q", "v"))
    assert (found.strong, found.weak) == ("down", "v")
    estimate, low, high = found.gap
    assert low < 0.3 < high
    assert low < estimate < high
    assert found.p_value < 0.05


def test_one_resilient_component_that_loses_as_much_is_enough_to_refute_it() -> None:
    found = sensitivity(study_of({"q": 0.05, "up": 0.8, "o": 0.6, "down": 0.4}))
    assert found.verdict == "does not hold"
    assert (found.strong, found.weak) == ("down", "up")
    assert found.gap[2] < 0


def test_components_alike_leave_it_open() -> None:
    found = sensitivity(study_of({"q": 0.3, "o": 0.3}, trials_each=12))
    assert found.verdict == "not enough evidence"


def test_faults_are_compared_at_the_same_rates() -> None:
    """At each rate q loses more; were the rates thrown together it would lose less, having few harmful ones."""
    study = study_of({"q": 0.3, "o": 0.2}, 60, {"components": [["q"], ["o"]], "rate": [1e-6, 3e-6]})
    kept = [
        trial
        for trial in study.trials
        if not ("components = q" in trial.stratum and "3e-06" in trial.stratum and trial.trial % 3)
    ]
    assert sensitivity(study.__class__(**{**vars(study), "trials": tuple(kept)})).gap[0] < 0


@pytest.mark.parametrize(
    "sweep",
    [
        {"rate": RATES},
        {"components": [["q"], ["v"]], "rate": RATES},
        {"components": [["q", "o"], ["v", "down"]], "rate": RATES},
    ],
)
def test_other_sweeps_say_nothing_of_it(sweep: dict) -> None:
    study = swept_study(FAULTS, sweep, lambda values: (0.3, 5.0), 4)
    assert sensitivity(study) is None


def test_the_summary_holds_it_and_reads_back() -> None:
    summary = summarise(study_of({"q": 0.05, "o": 0.6}))
    assert summary.sensitivity == sensitivity(study_of({"q": 0.05, "o": 0.6}))
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    assert "sensitive = o: holds; o loses" in summary.text()
    assert np.isfinite(summary.sensitivity.gap).all()


def test_what_is_no_product_of_a_layer_is_in_neither_kind() -> None:
    found = sensitivity(study_of({"q": 0.05, "o": 0.6, "norm": 0.9, "embedding+lm_head": 0.9, "residual": 0.9}))
    assert (found.sensitive, found.resilient, found.verdict) == (("o",), ("q",), "holds")


def test_the_pair_shown_is_the_one_that_decides() -> None:
    """v has so few faults that it is the least certain, though q is nearer."""
    study = study_of({"q": 0.3, "o": 0.45, "v": 0.1}, 60)
    few = [trial for trial in study.trials if not ("components = v" in trial.stratum and trial.trial % 60 > 1)]
    found = sensitivity(study.__class__(**{**vars(study), "trials": tuple(few)}))
    assert found.weak == "v"
    assert (found.gap[1] > 0) == (found.verdict == "holds")
