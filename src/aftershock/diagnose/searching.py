"""The search for the cause of a wrong point among all hypotheses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.hypotheses import HYPOTHESES, Place, halves
from aftershock.diagnose.judging import Wrong
from aftershock.diagnose.local import deviation_at
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Target, compared
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.signatures import struck
from aftershock.diagnose.trials import Trial, best, next_best, tolerance, trials, tried

STAGES = (("choice", "number"), ("structure",), ("free",))
"""How much freedom the hypotheses of each stage have; the next stage is tried where the one before explains nothing."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A replica in the arithmetic of a target, the tokens, what the target shows, and all points that are wrong."""

    replica: Replica
    tokens: Tokens
    target: Target
    wrong: frozenset[Point]


@dataclass(frozen=True, eq=False)
class Explained:
    """A wrong point with the cause that was found, None where none explains it, and the best other one."""

    wrong: Wrong
    best: Trial | None = None
    other: Trial | None = None

    @property
    def alike(self) -> bool:
        """Whether the other one explains as well, as far as chance lets them be told apart."""
        if (
            self.best is None
            or self.other is None
            or not self.other.explained
            or self.other.backing < self.best.backing
        ):
            return False
        return self.other.left <= self.best.left * (1 + tolerance(self.best))


def searched(scene: Scene, wrong: Wrong) -> Explained:
    """The cause of a wrong point: of all its rows, or else, as if they alone were shown, of those that are wrong. What
    is the same for all tokens, as words and settings are, is no cause of what strikes some of them."""
    everywhere = _explained(scene, wrong)
    hit = struck(wrong.deviation.ratios)
    if everywhere.best is not None or not 1 < int(hit.sum()) < len(hit):
        return everywhere
    some = compared(scene.replica, scene.target, wrong.point).at(hit.nonzero()[:, 0])
    there = replace(scene, target={**scene.target, wrong.point: some})
    deviation = deviation_at(scene.replica, scene.tokens, there.target, wrong.point)
    alone = _explained(there, replace(wrong, deviation=deviation))
    if alone.best is None:
        return everywhere
    if alone.best.hypothesis.same_for_all:
        return Explained(wrong, other=alone.best)
    return replace(alone, wrong=wrong)


def again(scene: Scene, wrong: Wrong, known: Sequence[Trial]) -> Explained | None:
    """The point explained by a cause that was found before: with its parameters, or with parameters of its own."""
    pairs = [(place, own) for place in _places(scene, wrong) for own in known if place.kind in own.hypothesis.kinds]
    for place, own in pairs:
        # A candidate changes the kind that it was found in, and those that it names.
        if place.kind == own.kind or place.kind in own.candidate.besides:
            same = tried(place, own.candidate, own.hypothesis, scene.wrong)
            if same.explained:
                return Explained(wrong, same)
    for place, hypothesis in dict.fromkeys((place, own.hypothesis) for place, own in pairs):
        if hypothesis.freedom != "free":
            found = trials(place, hypothesis, scene.wrong)
            if (chosen := best(found)) is not None:
                return Explained(wrong, chosen, next_best(found, chosen))
    return None


def _explained(scene: Scene, wrong: Wrong) -> Explained:
    """The best of all hypotheses, the less free ones first."""
    places = _places(scene, wrong)
    found: list[Trial] = []
    for stage in STAGES:
        for place in places:
            for hypothesis in HYPOTHESES:
                if place.kind in hypothesis.kinds and hypothesis.freedom in stage:
                    found += trials(place, hypothesis, scene.wrong)
        if any(own.explained for own in found):
            break
    chosen = best(found)
    return Explained(wrong, chosen, next_best(found, chosen))


def _places(scene: Scene, wrong: Wrong) -> list[Place]:
    """The computations that may be to blame for a wrong point, the latest first: its own, then hidden ones. None where
    no row is finite."""
    fitted, _ = halves(wrong.deviation.ratios)
    shown = compared(scene.replica, scene.target, wrong.point).values.to(fitted.device)
    fitted = fitted[torch.isfinite(shown[fitted]).all(-1) & torch.isfinite(wrong.deviation.size[fitted])]
    if not len(fitted):
        return []
    return [
        Place(scene.replica, scene.tokens, scene.target, wrong.deviation, wrong.parts, kind, fitted)
        for kind in dict.fromkeys(part.kind for part in reversed(wrong.parts))
    ]
