"""Curves of sweeps: what each group loses over rates and numbers of errors, against the trials themselves."""

import math

import numpy as np
import pytest

from aftershock.stats import awrcl, drop_threshold
from aftershock.study import Summary, rising, severity_text, summarise
from aftershock.study.curves import CurvePoint, sweep_curves
from aftershock.study.rates import Rate
from swept_study import swept_study

FAULTS = {"sites": ["weight"], "draw": "uniform"}
RATES = [1e-6, 1e-5, 1e-4, 1e-3]
SIZES = {"q": 4e5, "down": 3e6, "norm": 2e4}
COMPONENTS = [["q"], ["down"], ["norm"]]


def lost(values):
    """All components lose alike by error."""
    errors = SIZES[values["components"][0]] * values["rate"]
    return 0.9 * (1 - math.exp(-errors / 50)), errors


@pytest.fixture(scope="module")
def study():
    return swept_study(FAULTS, {"components": COMPONENTS, "rate": RATES[::-1]}, lost, trials_each=12)


@pytest.fixture(scope="module")
def curves(study):
    return sweep_curves(study)


def test_every_group_has_a_curve_with_its_points_in_order(study, curves):
    assert [curve.group for curve in curves] == [{"components": name} for name in ("q", "down", "norm")]
    for curve in curves:
        assert [point.rate for point in curve.points] == RATES
        assert curve.measure == "accuracy"
        for point in curve.points:
            name = f"components = {curve.group['components']}, rate = {point.rate}"
            own = [trial for trial in study.trials if trial.stratum == name]
            assert point.errors == np.mean([trial.fault_count for trial in own])
            right = [np.mean([item.right for item in trial.items]) for trial in own]
            assert point.share.estimate == pytest.approx(np.mean(right))
            assert point.share.low <= point.share.estimate <= point.share.high


def test_losses_are_those_on_each_faults_own_items(study, curves):
    golden = {record.item: record.right for record in study.golden}
    for curve in curves:
        losses, clean = [], []
        for rate in RATES:
            name = f"components = {curve.group['components']}, rate = {rate}"
            own = [trial for trial in study.trials if trial.stratum == name]
            before = [np.mean([golden[item.item] for item in trial.items]) for trial in own]
            after = [np.mean([item.right for item in trial.items]) for trial in own]
            losses.append(np.mean(before) - np.mean(after))
            clean += before
        baseline = np.mean(clean)
        accuracies = baseline - np.array(losses)
        assert curve.baseline == pytest.approx(baseline)
        average, low, high = curve.by_rate.awrcl
        assert average == pytest.approx(awrcl(baseline, accuracies, np.ones(4)))
        assert low <= average <= high
        half, low, high = curve.by_rate.half_lost
        assert half == pytest.approx(drop_threshold(RATES, baseline, accuracies))
        assert low <= half <= high


def test_by_rate_the_large_component_is_the_most_fragile_and_by_errors_all_are_alike(curves):
    q, down, norm = curves
    assert down.by_rate.awrcl[0] > q.by_rate.awrcl[0] > norm.by_rate.awrcl[0]
    assert down.by_rate.half_lost[0] < q.by_rate.half_lost[0] < norm.by_rate.half_lost[0] == math.inf
    for one in (q, down):
        _, low, high = one.by_errors.half_lost
        assert low < 60
        assert high > 25
    assert abs(q.by_errors.awrcl[0] - down.by_errors.awrcl[0]) < 0.1


def test_the_average_over_errors_is_at_numbers_that_every_group_reached(curves):
    shared = curves[0].by_errors.severities
    assert len(shared) >= 2
    for curve in curves:
        assert curve.by_errors.severities == shared
        assert curve.by_errors.tried[0] <= shared[0] <= shared[-1] <= curve.by_errors.tried[1]


def test_groups_that_share_no_number_of_errors_have_thresholds_but_no_average():
    def apart(values):
        return 0.5, 1e6 * values["rate"] * (1 if values["components"] == ["q"] else 1e4)

    sweep = {"components": [["q"], ["down"]], "rate": [1e-5, 1e-4]}
    for curve in sweep_curves(swept_study(FAULTS, sweep, apart, trials_each=3)):
        assert curve.by_errors.awrcl is None
        assert curve.by_errors.severities == ()
        assert curve.by_rate.awrcl is not None


def test_a_sweep_over_counts_has_no_rates_and_without_references_counts_what_is_kept():
    def by_count(values):
        return 1 - math.exp(-values["count"] / 30), values["count"]

    study = swept_study(FAULTS, {"count": [1, 10, 100, 1000]}, by_count, trials_each=8, referenced=False)
    (curve,) = sweep_curves(study)
    assert curve.name == "all"
    assert curve.measure == "kept"
    assert curve.baseline == 1
    assert curve.by_rate is None
    assert {point.rate for point in curve.points} == {None}
    assert curve.points[0].share.estimate > 0.9 > 0.1 > curve.points[-1].share.estimate
    assert 10 < curve.by_errors.half_lost[0] < 100
    shares = [point.share.estimate for point in curve.points]
    assert curve.by_errors.awrcl[0] == pytest.approx(np.mean([1 - share for share in shares]))


def test_errors_that_do_not_rise_have_no_place_on_the_axis():
    share = Rate(estimate=0.5, low=0.4, high=0.6, n=3)
    points = [CurvePoint(rate=1e-6, errors=errors, share=share) for errors in (0, 0.5, 0.5, 0.25, 4)]
    assert rising(points) == [1, 4]


def test_sweeps_over_other_keys_or_one_value_have_no_curve():
    assert sweep_curves(swept_study(FAULTS, {"components": COMPONENTS}, lambda values: (0.1, 1))) == ()
    assert sweep_curves(swept_study(FAULTS, {"rate": [1e-5]}, lambda values: (0.1, 1))) == ()


def test_severities_beyond_those_tried_say_so():
    assert [severity_text(value, (1e-6, 1e-3)) for value in (0, 3.21e-5, math.inf)] == [
        "< 1.00e-06",
        "3.21e-05",
        "> 1.00e-03",
    ]
    assert severity_text(12345.6, (1, 1e5)) == "12,346"


def test_the_summary_holds_them_and_reads_back(study):
    summary = summarise(study)
    assert summary.curves == sweep_curves(study)
    assert summary.degradation is None
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    assert "components = norm: by rate AWRCL" in summary.text()
    assert "half lost at > 1.00e-03" in summary.text()
