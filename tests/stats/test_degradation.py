"""The degradation model against planted parameters, and what it can't tell apart."""

import numpy as np
import pytest

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats import Cells, Degradation, Term, fit_degradation, held_out

GROUPS = ((0.1, 2), (0.35, 4), (0.6, 8), (0.9, 4))
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
VALUES = (2e5, 1e6, 5e6)


def known(value: float) -> Term:
    return Term(value, None)


TRUTH = Degradation((known(0.04), known(0.008), known(0.002)), known(1.5), known(0.3), known(0.8), 4e5)


def cells_of(truth: Degradation, seed: int, noise: float, alike: bool = False, flat: bool = False) -> Cells:
    """Three components in four groups of layers at four rates; groups of one size, or of one depth."""
    component, depth, size, rate = np.array(
        [
            (number, 0.5 if flat else place, values * (4 if alike else layers), rate)
            for number, values in enumerate(VALUES)
            for place, layers in GROUPS
            for rate in RATES
        ]
    ).T
    empty = Cells(component.astype(np.int64), depth, size, rate, np.zeros(len(rate)))
    loss = truth.predict(empty) + noise * generator(seed, 0, "planted noise").standard_normal(len(rate))
    return Cells(empty.component, depth, size, rate, loss)


def terms(model: Degradation) -> list[Term]:
    assert model.depth is not None
    assert model.size is not None
    return [*model.sensitivity, model.depth, model.size, model.ceiling]


def test_without_noise_the_planted_parameters_come_back() -> None:
    found = fit_degradation(cells_of(TRUTH, 0, 0.0))
    assert [term.value for term in terms(found)] == pytest.approx([term.value for term in terms(TRUTH)], rel=1e-3)


def test_a_saturated_curve_is_what_it_says() -> None:
    one = Cells(np.array([0, 0]), np.zeros(2), np.array([1e6, 1e6]), np.array([1e-9, 1.0]), np.zeros(2))
    low, high = Degradation((known(0.05),), None, None, known(0.7), 1e6).predict(one)
    assert low == pytest.approx(1e6 * 1e-9 * 0.05, rel=1e-3)
    assert high == pytest.approx(0.7)


def test_standard_errors_are_those_of_repeated_experiments() -> None:
    fits = [fit_degradation(cells_of(TRUTH, seed, 0.02)) for seed in range(40)]
    scores = np.array(
        [
            [
                (term.value - true.value) / term.standard_error
                for term, true in zip(terms(fit), terms(TRUTH), strict=True)
            ]
            for fit in fits
        ]
    )
    assert (np.abs(scores.mean(axis=0)) < 0.6).all()
    assert (scores.std(axis=0) > 0.6).all()
    assert (scores.std(axis=0) < 1.6).all()


def test_terms_that_the_cells_can_not_tell_apart_are_left_out() -> None:
    one_size = fit_degradation(cells_of(TRUTH, 0, 0.01, alike=True))
    assert one_size.size is None
    assert one_size.depth is not None
    one_depth = fit_degradation(cells_of(TRUTH, 0, 0.01, flat=True))
    assert one_depth.depth is None
    assert one_depth.size is not None
    # What is left stands for the product: S (N / N_min)^-r of components of one size each, up to N_min.
    product = 0.04 * (2e5 * 4 / 4e5) ** -0.3
    assert one_size.sensitivity[0].value == pytest.approx(product, rel=0.15)


def test_without_saturation_only_the_first_slope_is_known() -> None:
    few = cells_of(TRUTH, 0, 0.0)
    few = Cells(few.component, few.depth, few.size, few.rate / 1e4, few.loss)
    linear = Cells(few.component, few.depth, few.size, few.rate, TRUTH.predict(few) * 1.0)
    found = fit_degradation(linear)
    assert [term.value for term in found.sensitivity] == pytest.approx([0.04, 0.008, 0.002], rel=0.05)
    ceiling = found.ceiling
    assert ceiling.standard_error is None or ceiling.standard_error > 10 * found.sensitivity[0].standard_error


def test_a_component_that_loses_nothing_has_no_sensitivity() -> None:
    cells = cells_of(TRUTH, 0, 0.0)
    loss = np.where(cells.component == 1, 0.0, cells.loss)
    found = fit_degradation(Cells(cells.component, cells.depth, cells.size, cells.rate, loss))
    assert found.sensitivity[1].value < 1e-5
    assert found.sensitivity[0].value == pytest.approx(0.04, rel=0.05)


def test_held_out_cells_are_predicted_better_than_by_less() -> None:
    cells = cells_of(TRUTH, 3, 0.02)
    found = held_out(cells, seed=1)
    assert found.model.mean_absolute_error < 0.03
    assert found.model.mean_absolute_error < found.errors_alone.mean_absolute_error / 2
    assert found.errors_alone.mean_absolute_error < found.mean.mean_absolute_error
    assert found.model.rank_correlation is not None
    assert found.model.rank_correlation > 0.9
    assert found.mean.rank_correlation is None
    gain = found.errors_alone.mean_absolute_error - found.model.mean_absolute_error
    assert found.gain.estimate == pytest.approx(gain)
    assert 0 < found.gain.low < gain < found.gain.high
    assert held_out(cells, seed=1) == found != held_out(cells, seed=2)


def test_a_cell_is_predicted_without_its_own_loss() -> None:
    cells = cells_of(TRUTH, 0, 0.0)
    loss = cells.loss.copy()
    loss[7] += 0.5
    wrong = Cells(cells.component, cells.depth, cells.size, cells.rate, loss)
    assert held_out(wrong, 0).model.mean_absolute_error > 0.3 / len(cells)


def test_where_nothing_but_the_number_of_errors_counts_the_model_gains_nothing() -> None:
    same = Degradation((known(0.01),) * 3, known(0.0), known(0.0), known(0.8), 4e5)
    found = held_out(cells_of(same, 0, 0.03), 0)
    assert abs(found.gain.estimate) < 0.01


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": np.zeros(3)}, "another number of loss"),
        ({"rate": np.zeros(48)}, "no rate"),
        ({"loss": np.full(48, np.nan)}, "no loss"),
        ({"component": np.full(48, 1)}, "counted from 0"),
    ],
)
def test_cells_that_make_no_sense_are_refused(change: dict, reason: str) -> None:
    cells = cells_of(TRUTH, 0, 0.0)
    arrays = {name: getattr(cells, name) for name in ("component", "depth", "size", "rate", "loss")}
    with pytest.raises(InputError, match=reason):
        Cells(**{**arrays, **change})


def test_too_few_cells_are_refused() -> None:
    cells = cells_of(TRUTH, 0, 0.0)
    few = cells.only(np.isin(np.arange(48), [0, 16, 32, 47]))
    with pytest.raises(InputError, match="4 cells can't tell"):
        fit_degradation(few)
    with pytest.raises(InputError, match="one cell only"):
        held_out(few, 0)
