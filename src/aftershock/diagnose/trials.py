"""A cause tried at a place: what it leaves unexplained, there and wherever else it would show."""

from collections.abc import Sequence
from dataclasses import dataclass

from aftershock.diagnose.hypotheses import Candidate, Hypothesis, Place, chance, halves
from aftershock.diagnose.judging import is_wrong
from aftershock.diagnose.local import parts
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Deviation

WORTH = 0.95
"""A cause leaves no more than this of the sum of squares."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A cause that was tried at a place, and what it leaves of the deviation. `explained`: nothing of it, and no other
    point contradicts; `backing` other wrong points come out right with it."""

    candidate: Candidate
    hypothesis: Hypothesis
    kind: str
    layers: tuple[int, ...]
    after: Deviation
    explained: bool
    backing: int = 0

    @property
    def component(self) -> str:
        """The component to blame."""
        return self.candidate.blamed or self.kind

    @property
    def left(self) -> float:
        """Sum of squares that it does not explain."""
        return float(self.after.error.sum())

    @property
    def found(self) -> str:
        """The parameter found, numbers with three digits."""
        found = self.candidate.found
        return f"{found:.3g}" if isinstance(found, float) else str(found)


def trials(place: Place, hypothesis: Hypothesis, wrong: frozenset[Point]) -> list[Trial]:
    """All candidates of a hypothesis, tried; `wrong` are all wrong points."""
    return [tried(place, own, hypothesis, wrong) for own in hypothesis.candidates(place)]


def tried(place: Place, candidate: Candidate, hypothesis: Hypothesis, wrong: frozenset[Point]) -> Trial:
    """A candidate explains a point when what it leaves is healthy, on all rows and on those from which no parameter was
    found, and so is every other point in which the same computation is hidden, except those that were wrong before."""
    after = place.deviation(candidate.change, place.point)
    _, held = halves(place.wrong.ratios)
    explained = _healed(place.wrong, after, candidate.least) and not is_wrong(after.of(held))
    explained = explained and not (candidate.least and place.is_of_words)
    backing = 0
    others = _others(place, candidate)
    if explained and others:
        healthy = {point for point in others if not is_wrong(place.deviation(candidate.change, point))}
        explained = wrong.issuperset(others - healthy)
        backing = len(healthy & wrong)
    return Trial(candidate, hypothesis, place.kind, place.layers, after, explained, backing)


def _healed(before: Deviation, after: Deviation, least: float) -> bool:
    """Whether what is left is healthy, and either less than before or, for a change that only allows for more rounding,
    not too little for it."""
    enough = after.ratio >= least if least else float(after.error.sum()) < WORTH * float(before.error.sum())
    return enough and not is_wrong(after)


def _others(place: Place, candidate: Candidate) -> set[Point]:
    """Other points in which the same computation is hidden, and those that the candidate names."""
    named = {Point(kind, layer) for kind in candidate.besides for layer in place.layers}
    found = named & place.target.keys() - {place.point}
    return found if place.direct else found | _hiding(place)


def _hiding(place: Place) -> set[Point]:
    hidden = {Point(place.kind, layer) for layer in place.layers}
    near = {*place.layers, *(layer + 1 for layer in place.layers), -1}
    return {
        point
        for point in place.target
        if point.layer in near and point != place.point and hidden & {*parts(place.replica, place.target, point)}
    }


def best(found: Sequence[Trial]) -> Trial | None:
    """Of those that explain best, as far as chance lets them be told apart, the one with most backing, or the first."""
    explained = [own for own in found if own.explained]
    least = min((own.left for own in explained), default=0.0)
    alike = [own for own in explained if own.left <= least * (1 + tolerance(own))]
    return max(alike, key=lambda own: own.backing, default=None)


def tolerance(trial: Trial) -> float:
    """Share by which what trials leave may differ by chance."""
    return chance(len(trial.after.error) * len(trial.after.channel_error))


def next_best(found: Sequence[Trial], chosen: Trial | None) -> Trial | None:
    """The one of another cause that leaves least."""
    others = [own for own in found if chosen is None or own.candidate.cause != chosen.candidate.cause]
    finite = [own for own in others if own.left == own.left]
    return min(finite, key=lambda own: (not own.explained, own.left), default=None)
