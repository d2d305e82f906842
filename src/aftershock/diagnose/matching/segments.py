"""Match the points of one layer: by value, and where a component is wrong, by what makes the next one right."""

from collections.abc import Mapping, Sequence

from aftershock.diagnose.matching.confirming import confirmed
from aftershock.diagnose.matching.gaps import filled
from aftershock.diagnose.matching.options import options
from aftershock.diagnose.matching.search import glance, search
from aftershock.diagnose.matching.walking import Find, Scene, Step, Walk, again, searching, stepped, walked
from aftershock.diagnose.points import Point
from aftershock.diagnose.sources import Match


def matched(scene: Scene, entering: Point, begin: Step, points: Sequence[Point]) -> dict[Point, Step]:
    """The steps of a layer's points behind `begin`, the one that enters it, each with its match, if any."""
    layer = points[0].layer
    find = searching(scene, layer, search)
    if begin.match is None:
        begin = stepped(scene, begin.expected, find(entering, scene.wanted(entering, begin.expected), {}))
    walk = walked(scene, points, {entering: begin}, find)
    while (changes := _resuming(scene, walk, searching(scene, layer, glance))) is not None:
        walk = again(scene, walk, changes, find)
    return confirmed(scene, filled(scene, walk))


def _resuming(scene: Scene, walk: Walk, find: Find) -> Mapping[Point, Match] | None:
    """Matches for points that none was found for, with which more points are found by value, since they make the next
    ones come out right. None where nothing is missing, or no tensor does that."""
    points = list(walk)
    last = max((number for number, point in enumerate(points) if scene.exact(walk[point].match)), default=-1)
    if all(walk[point].match is not None for point in points[last + 1 : -1]):
        return None
    known = _exact(scene, walk)
    return next(
        (
            changes
            for point in points[:-1]
            if walk[point].match is None
            for changes in options(scene, walk, point)
            if _exact(scene, again(scene, walk, changes, find)) > known
        ),
        None,
    )


def _exact(scene: Scene, walk: Walk) -> int:
    return sum(scene.exact(step.match) for step in walk.values())
