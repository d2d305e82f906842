"""How much accuracy faults cost, from where they strike and how many: a model of the loss, fitted and held out.

After Morumpalle et al., "Specified Backup for Fragile Parts of LLM" (2024), section 6.3.3: D = N S_c P A (1 - R). A
cell is a component in some layers at one rate of errors, with the relative loss of accuracy measured there. In a cell
with N values, errors at rate P and depth d (0 the first layer, 1 the last)

    loss = L (1 - exp(-D / L)),    D = N P S_c exp(-a d) (N / N_min)^-r

so A = exp(-a d), larger in early layers where a > 0, and 1 - R = (N / N_min)^-r, redundancy that grows with size
where r > 0. The paper gives no A or R and its D has no bound; the saturating link, with L <= 1 the loss that many
errors come to, is ours. N P is the number of errors, so S_c is the loss by one error, of few, in the first layer of
the smallest cell.

What the losses can't tell apart: a factor of D and the link's rate k (k is 1 / L here, so that D is a loss); A where
no component is seen at two depths; R and S_c where no component is seen in two sizes, or these go with depth. Such a
term is left out, and S_c then stands for the product.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from aftershock.errors import InputError
from aftershock.numerics import generator
from aftershock.stats.bootstrap import bootstrap_interval
from aftershock.stats.estimates import Estimate, Floats, floats

Integers = npt.NDArray[np.int64]

FOLDS = 5
_STEEPEST = 20.0
"""Largest |a| and |r|: a factor of e^20 between the first and the last layer."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells, all arrays of shape (cells,).

    `component`, int64, counts components from 0; `depth` from 0 to 1; `size` N > 0; `rate` P > 0; `loss` the relative
    loss of accuracy, 1 where all is lost. Raises InputError when lengths differ or a number lies outside.
    """

    component: Integers
    depth: Floats
    size: Floats
    rate: Floats
    loss: Floats

    def __post_init__(self) -> None:
        for name in ("depth", "size", "rate", "loss"):
            if floats(getattr(self, name), name, dimensions=1).shape != self.component.shape:
                raise InputError(f"there are {self.component.size} cells and another number of {name}: give one each")
        if self.size.min() <= 0 or self.rate.min() <= 0 or not np.isfinite(self.loss).all():
            raise InputError("a cell has no size, no rate or no loss: leave it out")
        if set(self.component.tolist()) != set(range(self.component.max() + 1)):
            raise InputError("components must be counted from 0 with none left out")

    def __len__(self) -> int:
        return int(self.component.size)

    @property
    def components(self) -> int:
        """How many components there are."""
        return int(self.component.max()) + 1

    def only(self, chosen: npt.NDArray[np.bool_]) -> "Cells":
        """Some of them; bool, shape (cells,). Every component must be among them."""
        return Cells(*(getattr(self, name)[chosen] for name in ("component", "depth", "size", "rate", "loss")))

    def pooled(self) -> "Cells":
        """The same as cells of one component, all of one depth and size but with as many errors."""
        whole = np.zeros_like(self.component)
        return Cells(whole, np.zeros(len(self)), np.ones(len(self)), self.size * self.rate, self.loss)


@dataclass(frozen=True)
class Term:
    """A fitted number; no standard error where it lies on the edge of what is allowed, or nothing depends on it."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Degradation:
    """A fitted model: S of each component, a and r (None: not told apart), L, and N_min."""

    sensitivity: tuple[Term, ...]
    depth: Term | None
    size: Term | None
    ceiling: Term
    smallest: float

    def predict(self, cells: Cells) -> Floats:
        """The losses expected in cells, shape (cells,)."""
        slopes = [0.0 if term is None else term.value for term in (self.depth, self.size)]
        sensitivity = np.array([term.value for term in self.sensitivity])
        return _loss(cells, self.smallest, sensitivity, np.array(slopes), self.ceiling.value)


@dataclass(frozen=True)
class Prediction:
    """How well held-out losses were predicted: mean absolute error, and Spearman's rank correlation (None where all
    predictions of a fold are alike)."""

    mean_absolute_error: float
    rank_correlation: float | None


@dataclass(frozen=True)
class HeldOut:
    """The model beside two that know less: `errors_alone` has one sensitivity for everything and only the number of
    errors N P to go by, `mean` predicts the mean loss. `gain` is by how much the model's absolute error is smaller
    than that of `errors_alone`, mean over cells with a bootstrap interval over cells."""

    model: Prediction
    errors_alone: Prediction
    mean: Prediction
    gain: Estimate


def fit_degradation(cells: Cells) -> Degradation:
    """The model that fits the losses best by least squares, all cells alike.

    Standard errors hold where cells vary differently (HC3; MacKinnon and White, J. Econometrics 1985), for the
    linearised model. Raises InputError unless there are more cells than numbers to fit.
    """
    columns = _told_apart(cells)
    free = cells.components + len(columns) + 1
    if len(cells) <= free:
        raise InputError(f"{len(cells)} cells can't tell {free} numbers: sweep over more rates or groups of layers")
    smallest, count = float(cells.size.min()), cells.components

    def residuals(numbers: Floats) -> Floats:
        return _loss(cells, smallest, numbers[:count], _slopes(numbers[count:-1], columns), numbers[-1]) - cells.loss

    lower = np.array([0.0] * count + [-_STEEPEST] * len(columns) + [1e-6])
    upper = np.array([np.inf] * count + [_STEEPEST] * len(columns) + [1.0])
    ceiling = float(np.clip(cells.loss.max(), 0.01, 0.99))
    begin = _first_sensitivity(cells, ceiling)
    # The sum of squares has valleys: one begins with early, one with late, one with equally harmful layers.
    starts = [np.array([*begin, *[slope] * len(columns), ceiling]) for slope in (0.0, 1.0, -1.0)]
    tries = [least_squares(residuals, start, bounds=(lower, upper), x_scale="jac") for start in starts]
    best = min(tries, key=lambda one: float(one.cost))
    deviations = _standard_errors(np.asarray(best.jac), np.asarray(best.fun), np.asarray(best.active_mask) == 0)
    terms = [Term(float(value), error) for value, error in zip(best.x, deviations, strict=True)]
    shape = dict(zip(columns, terms[count:-1], strict=True))
    return Degradation(tuple(terms[:count]), shape.get("depth"), shape.get("size"), terms[-1], smallest)


def held_out(cells: Cells, seed: int, folds: int = FOLDS) -> HeldOut:
    """How well each cell is predicted from those of the other folds. Cells are dealt into folds component by
    component, in an order that follows from the seed.

    Raises InputError where a component has one cell only, or too few are left to fit.
    """
    if np.bincount(cells.component).min() < 2 or folds < 2:
        raise InputError("a component has one cell only: nothing is left to predict it from, so sweep over more rates")
    order = generator(seed, 0, "held-out cells").permutation(len(cells))
    by_component = order[np.argsort(cells.component[order], kind="stable")]
    fold = np.empty(len(cells), dtype=np.int64)
    fold[by_component] = np.arange(len(cells)) % folds
    model, alone, mean = (np.empty(len(cells)) for _ in range(3))
    for number in np.unique(fold):
        inside = fold == number
        known = cells.only(~inside)
        model[inside] = fit_degradation(known).predict(cells)[inside]
        alone[inside] = fit_degradation(known.pooled()).predict(cells.pooled())[inside]
        mean[inside] = known.loss.mean()
    gains = np.abs(alone - cells.loss) - np.abs(model - cells.loss)
    return HeldOut(
        Prediction(_error(model, cells), _rank_correlation(model, cells)),
        Prediction(_error(alone, cells), _rank_correlation(alone, cells)),
        Prediction(_error(mean, cells), None),
        bootstrap_interval(gains, lambda drawn: drawn.mean(axis=1), seed),
    )


def _loss(cells: Cells, smallest: float, sensitivity: Floats, slopes: Floats, ceiling: float) -> Floats:
    logs = slopes[0] * cells.depth + slopes[1] * np.log(cells.size / smallest)
    damage = cells.size * cells.rate * sensitivity[cells.component] * np.exp(-logs)
    return np.asarray(-ceiling * np.expm1(-damage / ceiling))


def _slopes(fitted: Floats, columns: tuple[str, ...]) -> Floats:
    return np.array([fitted[columns.index(name)] if name in columns else 0.0 for name in ("depth", "size")])


def _told_apart(cells: Cells) -> tuple[str, ...]:
    """The terms that the cells can tell from the sensitivities and from each other."""
    design = np.eye(cells.components)[cells.component]
    found = []
    for name, column in (("depth", cells.depth), ("size", np.log(cells.size))):
        wider = np.column_stack([design, column])
        if np.linalg.matrix_rank(wider) > np.linalg.matrix_rank(design):
            design = wider
            found.append(name)
    return tuple(found)


def _first_sensitivity(cells: Cells, ceiling: float) -> Floats:
    """Of each component the best of a grid that reaches from no effect to all lost by the fewest errors."""
    errors = cells.size * cells.rate
    grid = np.geomspace(1e-3 * ceiling / errors.max(), 10 * ceiling / errors.min(), 200)
    misfit = (-ceiling * np.expm1(-errors * grid[:, None] / ceiling) - cells.loss) ** 2
    sums = [misfit[:, cells.component == number].sum(axis=1) for number in range(cells.components)]
    return np.array([grid[one.argmin()] for one in sums])


def _standard_errors(jacobian: Floats, residuals: Floats, inside: npt.NDArray[np.bool_]) -> list[float | None]:
    """Roots of the diagonal of HC3's covariance, for the numbers inside their bounds on which something depends."""
    norms = np.linalg.norm(jacobian, axis=0)
    used = inside & (norms > 0)
    scaled = jacobian[:, used] / norms[used]
    inverse = np.linalg.pinv(scaled)
    leverage = np.einsum("ij,ji->i", scaled, inverse)
    # A cell that the fit goes through by necessity tells nothing of the spread.
    spread = residuals / np.maximum(1 - leverage, 1e-6)
    errors = np.sqrt(((inverse * spread) ** 2).sum(axis=1)) / norms[used]
    found: list[float | None] = [None] * len(norms)
    for number, error in zip(np.flatnonzero(used).tolist(), errors.tolist(), strict=True):
        found[number] = error
    return found


def _error(predicted: Floats, cells: Cells) -> float:
    return float(np.abs(predicted - cells.loss).mean())


def _rank_correlation(predicted: Floats, cells: Cells) -> float | None:
    if np.ptp(predicted) == 0 or np.ptp(cells.loss) == 0:
        return None
    return float(spearmanr(predicted, cells.loss).statistic)
