"""Walk over a layer's points, each computed from the target's own values before it, and find each in the target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.matching.catalogue import Catalogue, Value
from aftershock.diagnose.matching.search import Found, Wanted, measured
from aftershock.diagnose.matching.series import Series
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.sources import Match, Source

Look = Callable[[Catalogue, Wanted, Sequence[Value], float], Found | None]
"""A way to look for wanted values among tensors, given a tolerance."""


@dataclass(frozen=True, eq=False)
class Step:
    """A point of a walk: the values expected of it, shape (tokens, channels), its match, if any, and the values that
    the walk goes on with: the target's where they are shown."""

    expected: torch.Tensor
    match: Match | None
    values: torch.Tensor


Walk = Mapping[Point, Step]
"""Steps in call order."""

Find = Callable[[Point, Wanted, Walk], Match | None]
"""The match of a point, given what is expected of it and the walk so far."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What a walk takes place in: `series` are the sources known from other layers, `taken` how many channels of each
    tensor, by its number, points of other layers have, `anchor` is the number of the tensor that was matched last, and
    `reach` how far from it a point is looked for."""

    replica: Replica
    tokens: Tokens
    catalogue: Catalogue
    tolerance: float
    series: Series
    taken: Mapping[int, int]
    anchor: int
    reach: int

    def wanted(self, point: Point, values: torch.Tensor) -> Wanted:
        """A point's values with the heads that they have."""
        return Wanted(values, self._heads(point), point.kind in ("embedding", "attn_residual", "residual"))

    def exact(self, match: Match | None) -> bool:
        """Whether a match holds the expected values, as far as the target's arithmetic goes."""
        return match is not None and match.error <= self.tolerance

    def measured(self, match: Match, wanted: Wanted) -> Match:
        """A match with the error that it has against these values. What is as expected is known by value."""
        error = measured(self.catalogue, wanted, match.source).apart
        if error <= self.tolerance:
            return Match(match.source, "value", error)
        return Match(match.source, "next value" if match.evidence == "value" else match.evidence, error)

    def foretold(self, point: Point, width: int) -> Source | None:
        """Where a point is, if it is where other layers have it."""
        source = self.series.foretold(point.kind, point.layer)
        return source if source is not None and self.catalogue.holds(source, width) else None

    def free(self, walk: Walk) -> list[Value]:
        """Tensors near the last matched one that no point has yet, or that have channels left, in call order."""
        taken = dict(self.taken)
        anchor = self.anchor
        for step in walk.values():
            if step.match is not None:
                anchor = max(anchor, *(self.catalogue.by_place[place].number for place in step.match.source.places))
                for number, channels in self.channels(step.match.source):
                    taken[number] = taken.get(number, 0) + channels
        return [
            value
            for value in self.catalogue.values
            if self.anchor - self.reach // 2 <= value.number <= anchor + self.reach
            and value.width > taken.get(value.number, 0)
        ]

    def channels(self, source: Source) -> list[tuple[int, int]]:
        """The tensors of a source by number, and how many of their channels it has."""
        values = [self.catalogue.by_place[place] for place in source.places]
        return [(value.number, source.layout.width or value.width) for value in values]

    def _heads(self, point: Point) -> int | None:
        if point.layer < 0:
            return None
        attention = self.replica.architecture.layers[point.layer].attention
        if point.kind in ("q", "q_norm", "q_rope", "attention"):
            return attention.heads
        return attention.kv_heads if point.kind in ("k", "k_norm", "k_rope", "v") else None


def walked(scene: Scene, points: Sequence[Point], kept: Walk, find: Find) -> dict[Point, Step]:
    """The steps of `points`, one after another, behind those of `kept`, which have all else that they are made of."""
    walk = dict(kept)
    for point in points:
        inputs = [walk[own].values for own in scene.replica.inputs(point)]
        expected = scene.replica.compute(point, inputs, scene.tokens)
        match = find(point, scene.wanted(point, expected), walk)
        walk[point] = stepped(scene, expected, match)
    return walk


def stepped(scene: Scene, expected: torch.Tensor, match: Match | None) -> Step:
    """A step that goes on with the matched values."""
    if match is None:
        return Step(expected, None, expected)
    return Step(expected, match, scene.catalogue.shown(match.source).into(expected))


def again(scene: Scene, walk: Walk, changes: Mapping[Point, Match], find: Find) -> dict[Point, Step]:
    """A walk with other matches for some points; `find` matches those behind them."""
    points = list(walk)
    first = min(points.index(point) for point in changes)

    def find_rest(point: Point, wanted: Wanted, so_far: Walk) -> Match | None:
        return scene.measured(changes[point], wanted) if point in changes else find(point, wanted, so_far)

    begin, expected = points[first], walk[points[first]].expected
    match = scene.measured(changes[begin], scene.wanted(begin, expected))
    kept = {**{point: walk[point] for point in points[:first]}, begin: stepped(scene, expected, match)}
    return walked(scene, points[first + 1 :], kept, find_rest)


def replayed(scene: Scene, walk: Walk, changes: Mapping[Point, Match]) -> dict[Point, Step]:
    """A walk with other matches for some points, and those that it has for all others."""

    def find(point: Point, wanted: Wanted, _: Walk) -> Match | None:
        match = walk[point].match
        return None if match is None else scene.measured(match, wanted)

    return again(scene, walk, changes, find)


def searching(scene: Scene, layer: int, look: Look) -> Find:
    """Finds by value, with `look`: where other layers have a point, else among the tensors that are not yet another
    point's. What other layers have is taken even if it is not what is expected, unless that is elsewhere."""
    others = {kind: scene.series.foretold(kind, layer) for kind in scene.series.known}
    meant = {kind: _whole(scene, source) for kind, source in others.items() if source is not None}

    def find(point: Point, wanted: Wanted, walk: Walk) -> Match | None:
        usual = scene.foretold(point, wanted.width)
        if usual is not None:
            error = measured(scene.catalogue, wanted, usual).apart
            if error <= scene.tolerance:
                return Match(usual, "value", error)
        free = scene.free(walk)
        if usual is None:
            taken = {number for kind, numbers in meant.items() if kind != point.kind for number in numbers}
            free = [value for value in free if value.number not in taken]
        found = look(scene.catalogue, wanted, free, scene.tolerance)
        if found is not None:
            return Match(found.source, "value", found.apart)
        return None if usual is None else Match(usual, "other layers", error)

    return find


def _whole(scene: Scene, source: Source) -> set[int]:
    """The numbers of the tensors that a source has alone."""
    return {scene.catalogue.by_place[place].number for place in source.places if not source.layout.width}
