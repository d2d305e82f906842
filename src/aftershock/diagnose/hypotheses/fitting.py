"""Parameters found from the target's values."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from scipy.optimize import minimize_scalar

from aftershock.diagnose.hypotheses.changes import Change
from aftershock.diagnose.hypotheses.place import Candidate, Place, chance

VALLEYS = 3
"""How many valleys of a grid are searched for the best number."""

ROUGH, FINE = 1e-4, 1e-8
"""Relative precision of numbers, at first and where they explain something."""

HOPE = 0.5
"""Share of the error that a number must not leave to be worth more digits."""


def best_number(place: Place, of: Callable[[float], Change], grid: Sequence[float]) -> float:
    """The number, of any size between the grid's ends, whose change leaves the least unexplained.

    The grid (positive, ascending) has to be fine enough to tell the valleys apart; the deepest few are searched by
    Brent's method in the logarithm, and the best one to the end where it explains anything. A round number that does as
    well is preferred.
    """
    errors = [math.inf, *(place.error(of(number)) for number in grid), math.inf]
    valleys = [own for own in range(len(grid)) if errors[own + 1] <= min(errors[own], errors[own + 2])]
    deepest = sorted(valleys, key=lambda own: errors[own + 1])[:VALLEYS]
    if not deepest:
        return grid[0]
    found = [_lowest(place, of, (grid[max(own - 1, 0)], grid[min(own + 1, len(grid) - 1)]), ROUGH) for own in deepest]
    error, number = min(found)
    if error > HOPE * float((place.expected - place.values).square().sum()):
        return number
    _, number = _lowest(place, of, (number / (1 + 10 * ROUGH), number * (1 + 10 * ROUGH)), FINE)
    return rounded(place, of, number)


def _lowest(
    place: Place, of: Callable[[float], Change], ends: tuple[float, float], apart: float
) -> tuple[float, float]:
    """The least error between two numbers, and where it is, to some difference of the logarithm."""
    result = minimize_scalar(
        lambda log: place.error(of(math.exp(log))),
        bounds=[math.log(end) for end in ends],
        method="bounded",
        options={"xatol": apart},
    )
    return float(result.fun), math.exp(result.x)


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
