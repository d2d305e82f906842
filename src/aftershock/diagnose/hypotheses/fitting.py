"""Parameters found from the target's values."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from scipy.optimize import minimize_scalar

from aftershock.diagnose.hypotheses.changes import Change
from aftershock.diagnose.hypotheses.place import Candidate, Place, chance

VALLEYS = 3
"""How many valleys of a grid are searched for the best number."""


def best_number(place: Place, of: Callable[[float], Change], grid: Sequence[float]) -> float:
    """The number, of any size between the grid's ends, whose change leaves the least unexplained.

    The grid (positive, ascending) has to be fine enough to tell the valleys apart; each of the deepest few is searched
    by Brent's method in the logarithm. A round number that does as well is preferred.
    """
    errors = [math.inf, *(place.error(of(number)) for number in grid), math.inf]
    valleys = [own for own in range(len(grid)) if errors[own + 1] <= min(errors[own], errors[own + 2])]
    found: list[tuple[float, float]] = []
    for start in sorted(valleys, key=lambda own: errors[own + 1])[:VALLEYS]:
        ends = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
        result = minimize_scalar(
            lambda log: place.error(of(math.exp(log))),
            bounds=[math.log(end) for end in ends],
            method="bounded",
            options={"xatol": 1e-8},
        )
        found.append((float(result.fun), math.exp(result.x)))
    _, number = min(found)
    return rounded(place, of, number)


def rounded(place: Place, of: Callable[[float], Change], number: float) -> float:
    """The number with the fewest digits that does about as well."""
    most = place.error(of(number)) * (1 + chance(place.values.numel()))
    for digits in range(1, 7):
        short = float(f"{number:.{digits - 1}e}")
        if place.error(of(short)) <= most:
            return short
    return number


def number(
    place: Place,
    cause: str,
    of: Callable[[float], Change],
    grid: Sequence[float],
    reference: float | str | None,
) -> Iterator[Candidate]:
    """The candidate with the best number."""
    found = best_number(place, of, grid)
    yield Candidate(cause, of(found), cause, found, reference)


def scale(values: torch.Tensor, expected: torch.Tensor) -> float:
    """The factor, by least squares, that takes the expected values to those found."""
    return float((values * expected).sum() / expected.square().sum())
