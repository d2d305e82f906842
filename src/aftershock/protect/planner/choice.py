"""Which protections to buy: maximum coverage of recorded faults within budgets, by an exact integer program."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from aftershock.errors import ContractError, InputError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_SLACK = 1e-5
"""Sets whose latencies differ by less than this share are not told apart: the solver's own tolerance is 1e-6."""


@dataclass(frozen=True)
class Offers:
    """What there is to choose from.

    `removes`, bool of shape (faults, candidates): which faults do no harm under which candidate; `weights`, shape
    (faults,): what each fault counts. `causes`, bool of shape (others, candidates): which faults that would have shown
    by themselves do harm in silence under which candidate; `harm`, shape (others,): what each of them counts. `latency`
    and `memory`, shape (candidates,): what each candidate adds. No number is below 0; costs of candidates that are
    chosen together add up.
    """

    removes: Flags
    weights: Floats
    causes: Flags
    harm: Floats
    latency: Floats
    memory: Floats

    def __post_init__(self) -> None:
        faults, candidates = self.removes.shape
        by_fault = self.weights.shape == (faults,) and self.causes.shape == (*self.harm.shape, candidates)
        if not by_fault or {self.latency.shape, self.memory.shape} != {(candidates,)}:
            raise InputError(f"{faults} faults and {candidates} candidates need as many weights and costs: give them")
        if min(one.min(initial=0) for one in (self.weights, self.harm, self.latency, self.memory)) < 0:
            raise InputError("weights and costs below 0 can't be planned with: give 0 where nothing is known")

    def removed(self, chosen: tuple[int, ...]) -> float:
        """Weight of the faults that at least one of the chosen candidates removes, less that of those that at least one
        makes do harm; each counts once."""
        removed, caused = (np.logical_or.reduce(one[:, list(chosen)], axis=1) for one in (self.removes, self.causes))
        return float(self.weights[removed].sum() - self.harm[caused].sum())


@dataclass(frozen=True)
class Choice:
    """A set of candidates by number, the weight of the faults it removes (less what it causes), its latency, memory."""

    chosen: tuple[int, ...]
    removed: float
    latency: float
    memory: float


def best_choice(offers: Offers, latency: float, memory: float = np.inf) -> Choice:
    """The set that removes the most within both budgets; of those that remove as much the one of least latency, then of
    least memory, then of fewest candidates.

    Maximise w.y - h.z subject to y_f <= sum of x_c over the candidates that remove f, z_g >= x_c for those that cause
    g, l.x <= latency, m.x <= memory, x binary, y and z in [0, 1]: maximum coverage with knapsack constraints (Khuller,
    Moss and Naor, Information Processing Letters 1999), solved by branch and bound (HiGHS). That another candidate may
    undo what one causes is left out. Raises InputError for a negative budget.
    """
    if not (latency >= 0 and memory >= 0):
        raise InputError(f"budgets of {latency} and {memory} buy nothing: give 0 or more")
    (faults, candidates), others = offers.removes.shape, len(offers.harm)
    if not candidates or not faults:
        return Choice((), 0.0, 0.0, 0.0)
    rest = np.zeros(faults + others)
    rows = [_at_most(offers.latency, latency, rest), _at_most(offers.memory, memory, rest)]
    uncovered = np.hstack([-offers.removes.astype(float), np.eye(faults), np.zeros((faults, others))])
    rows.append(LinearConstraint(uncovered, -np.inf, 0))
    made, makers = np.nonzero(offers.causes)
    if made.size:
        caused = np.hstack([np.eye(candidates)[makers], np.zeros((made.size, faults)), -np.eye(others)[made]])
        rows.append(LinearConstraint(caused, -np.inf, 0))
    gain = np.concatenate([np.zeros(candidates), offers.weights, -offers.harm])
    # One aim after the other, each no worse than before: one weighted sum would ask too much of the solver's precision.
    aims = [-gain, *(np.concatenate([cost, rest]) for cost in _aims(offers))]
    found = np.zeros(len(gain))
    for aim in aims:
        scale = max(float(np.abs(aim).max()), np.finfo(float).tiny)
        found = _solved(aim / scale, rows, candidates)
        best = float(aim / scale @ found)
        rows.append(LinearConstraint((aim / scale)[None], -np.inf, best + _SLACK * abs(best) / 10))
    chosen = tuple(np.flatnonzero(found[:candidates] > 0.5).tolist())
    used = list(chosen)
    return Choice(chosen, offers.removed(chosen), float(offers.latency[used].sum()), float(offers.memory[used].sum()))


def pareto(offers: Offers, memory: float = np.inf) -> tuple[Choice, ...]:
    """Every set worth its latency within a memory budget, from none to the one that removes the most: no other set
    removes more in as little time. Found from the dearest down, each time with less latency than the last."""
    return tuple(reversed(list(_falling(offers, memory))))


def _falling(offers: Offers, memory: float) -> Iterator[Choice]:
    found = best_choice(offers, float(offers.latency.sum()), memory)
    yield found
    while found.latency > 0:
        found = best_choice(offers, found.latency * (1 - _SLACK), memory)
        yield found
    if found.chosen:
        yield Choice((), 0.0, 0.0, 0.0)


def _aims(offers: Offers) -> tuple[Floats, Floats, Floats]:
    return offers.latency, offers.memory, np.ones(len(offers.latency))


def _at_most(costs: Floats, budget: float, rest: Floats) -> LinearConstraint:
    """The chosen candidates' costs within a budget; as shares of it, so that its size is no matter of precision."""
    allowed = costs <= budget
    scaled = costs / budget if 0 < budget < np.inf else np.where(allowed, 0.0, 2.0)
    return LinearConstraint(np.concatenate([scaled, rest])[None], -np.inf, 1.0)


def _solved(aim: Floats, rows: list[LinearConstraint], candidates: int) -> Floats:
    whole = np.concatenate([np.ones(candidates), np.zeros(len(aim) - candidates)])
    result = milp(aim, integrality=whole, bounds=Bounds(0, 1), constraints=rows, options={"mip_rel_gap": 0.0})
    if result.x is None:
        raise ContractError(f"the integer program was not solved: {result.message}")
    found: Floats = np.concatenate([result.x[:candidates].round(), result.x[candidates:]])
    return found


def parse_share(text: str, what: str) -> float:
    """`2%` or `2 %` as 0.02. Raises InputError for anything but a percentage from 0."""
    number, sign, rest = text.strip().partition("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not sign or rest or not 0 <= share < np.inf:
        raise InputError(f"{what} is {text!r}: give a percentage from 0 up, as in 2%")
    return share
