"""The degradation model of a study that sweeps over components, layers and rates."""

import math

import numpy as np
import pytest

from aftershock.study import Summary, summarise
from aftershock.study.degradation import degradation_model
from swept_study import LAYERS, swept_study

FAULTS = {"sites": ["weight"], "draw": "uniform"}
RATES = [1e-6, 1e-5, 1e-4, 1e-3]
BY_LAYER = {"q": 5e4, "down": 4e5}
SENSITIVITY = {"q": 0.02, "down": 0.004}


def lost(values):
    """a = 1.2, L = 0.8, r = 0."""
    name = values["components"][0]
    first, last = map(int, values["layers"].split("-"))
    errors = BY_LAYER[name] * (last - first + 1) * values["rate"]
    depth = (first + last) / 2 / (LAYERS - 1)
    damage = errors * SENSITIVITY[name] * math.exp(-1.2 * depth)
    return 0.8 * (1 - math.exp(-damage / 0.8)), errors


def study_of(layers):
    sweep = {"components": [["q"], ["down"]], "layers": layers, "rate": RATES}
    return swept_study(FAULTS, sweep, lost, trials_each=10, items=60)


@pytest.fixture(scope="module")
def study():
    return study_of(["0-1", "2-5", "6-11", "12-15"])


def test_the_planted_numbers_come_back_within_their_errors(study):
    found = degradation_model(study)
    assert found.cells == 32
    assert found.loss_of == "accuracy"
    for name, true in SENSITIVITY.items():
        term = found.sensitivity[name]
        assert abs(term.value - true) < 4 * term.standard_error
        assert term.standard_error < true
    assert abs(found.depth.value - 1.2) < 4 * found.depth.standard_error < 2
    assert abs(found.size.value) < 4 * found.size.standard_error
    assert found.ceiling.value == pytest.approx(0.8, abs=0.1)
    tried = found.held_out
    assert tried.model.mean_absolute_error < tried.errors_alone.mean_absolute_error
    assert tried.model.rank_correlation > 0.8


def test_groups_of_as_many_layers_tell_nothing_of_size():
    found = degradation_model(study_of(["0-3", "4-7", "8-11", "12-15"]))
    assert found.size is None
    assert found.depth is not None


def test_the_summary_holds_it_and_reads_back(study):
    summary = summarise(study)
    assert summary.degradation == degradation_model(study)
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    assert "degradation model of 32 cells: held-out error" in summary.text()


def test_other_sweeps_and_too_few_cells_have_none():
    def flat(values):
        return 0.1, 5

    both = {"components": [["q"], ["down"]], "rate": RATES}
    assert degradation_model(swept_study(FAULTS, both, flat, trials_each=2)) is None
    more = {**both, "layers": ["0-3"], "bit_classes": [["sign"]]}
    assert degradation_model(swept_study(FAULTS, more, flat, trials_each=2)) is None
    few = {"components": [["q"]], "layers": ["0-3"], "rate": RATES[:2]}
    assert degradation_model(swept_study(FAULTS, few, flat, trials_each=2)) is None
    unnamed = {"components": [["q"]], "layers": [""], "rate": RATES}
    assert degradation_model(swept_study(FAULTS, unnamed, flat, trials_each=2)) is None


def test_no_faults_drawn_is_no_model():
    sweep = {"components": [["q"]], "layers": ["0-3", "4-7"], "rate": RATES}
    study = swept_study(FAULTS, sweep, lambda values: (float(np.sqrt(values["rate"])), 0), trials_each=2)
    assert degradation_model(study) is None
