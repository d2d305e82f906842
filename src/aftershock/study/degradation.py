"""The degradation model of a sweep over components, layers and rates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aftershock.errors import InputError
from aftershock.faults import parse_layers, sweep_value
from aftershock.stats import Cells, HeldOut, Term, fit_degradation, held_out
from aftershock.study.kept import Measure, kept_by, measure_of
from aftershock.study.records import Record
from aftershock.study.store import StoredStudy
from aftershock.study.swept import swept_trials

KEYS = frozenset({"components", "layers", "rate"})
"""What the sweep must cross, and nothing else: another key would be a cause that the model doesn't know."""


class DegradationModel(Record):
    """loss = L (1 - exp(-D / L)), D = N P S_c exp(-a depth) (N / N_min)^-r, fitted to the relative losses of all
    cells.

    `sensitivity` is S_c of each component (loss by one error in the first layer), `depth` a, `size` r, `ceiling` L; a
    term that the cells can't tell from S_c is None, see `aftershock.stats.fit_degradation`. `loss_of` is what is
    lost. `held_out` tells how well the losses of cells were predicted from others.
    """

    cells: int
    loss_of: Measure
    sensitivity: dict[str, Term]
    depth: Term | None
    size: Term | None
    ceiling: Term
    held_out: HeldOut

    def text(self) -> str:
        """`degradation model of 48 cells: held-out error 0.041, 0.112 from the number of errors alone, ...`."""
        tried = self.held_out
        return (
            f"degradation model of {self.cells} cells: held-out error {tried.model.mean_absolute_error:.3f}, "
            f"{tried.errors_alone.mean_absolute_error:.3f} from the number of errors alone, "
            f"{tried.mean.mean_absolute_error:.3f} from the mean"
        )


def degradation_model(study: StoredStudy) -> DegradationModel | None:
    """The model of a study that sweeps over components, layers and rate; None of any other, and where its cells are too
    few to fit and to hold some out."""
    if study.settings.sweep.keys() != KEYS:
        return None
    measure = measure_of(study.golden)
    measured = list(_measured(study, measure))
    if not measured:
        return None
    names = list(dict.fromkeys(cell.component for cell in measured))
    try:
        cells = _cells(measured, names)
        fitted, tried = fit_degradation(cells), held_out(cells, study.settings.run.seed)
    except InputError:
        return None
    return DegradationModel(
        cells=len(cells),
        loss_of=measure,
        sensitivity=dict(zip(names, fitted.sensitivity, strict=True)),
        depth=fitted.depth,
        size=fitted.size,
        ceiling=fitted.ceiling,
        held_out=tried,
    )


@dataclass(frozen=True)
class _Measured:
    """One combination: what it strikes (`layers`: how many), and what its trials came to."""

    component: str
    depth: float
    layers: int
    rate: float
    trials: int
    faults: int
    loss: float


def _measured(study: StoredStudy, measure: Measure) -> Iterator[_Measured]:
    """Every combination that names its layers and has a loss."""
    deepest = max(study.environment.layers - 1, 1)
    for one in swept_trials(study):
        struck = parse_layers(one.selection.layers, study.environment.layers)
        shares = kept_by(measure, one.trials, study.golden)
        if struck and one.selection.rate is not None and np.nansum(shares.golden) > 0:
            yield _Measured(
                component=sweep_value(one.selection.components),
                depth=float(np.mean(list(struck))) / deepest,
                layers=len(struck),
                rate=one.selection.rate,
                trials=len(one.trials),
                faults=sum(trial.fault_count for trial in one.trials),
                loss=shares.loss,
            )


def _cells(measured: Sequence[_Measured], names: Sequence[str]) -> Cells:
    """N is known from the faults that were drawn: a component's, at all its rates, for each layer. So groups of as many
    layers have exactly one size. Raises InputError for a component of which none was drawn."""
    of_layer = {}
    for name in names:
        own = [cell for cell in measured if cell.component == name]
        of_layer[name] = sum(cell.faults for cell in own) / sum(cell.rate * cell.trials * cell.layers for cell in own)
    return Cells(
        component=np.array([names.index(cell.component) for cell in measured]),
        depth=np.array([cell.depth for cell in measured]),
        size=np.array([of_layer[cell.component] * cell.layers for cell in measured]),
        rate=np.array([cell.rate for cell in measured]),
        loss=np.array([cell.loss for cell in measured]),
    )
