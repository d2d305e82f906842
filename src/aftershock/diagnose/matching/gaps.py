"""Points without a source between those that have one: what explains a component that doesn't come out right."""

import re
from collections.abc import Sequence
from itertools import islice, product

from aftershock.diagnose.matching.catalogue import Value
from aftershock.diagnose.matching.options import feeding, options
from aftershock.diagnose.matching.walking import Scene, Step, Walk, replayed
from aftershock.diagnose.points import Point
from aftershock.diagnose.sources import Evidence, Match, Place, Source

_COMBINATIONS = 200
"""Ways to deal tensors out to missing points that are tried at most."""

_EXPLAINED = 0.5
"""An assignment that leaves no more than so much of the next component's error explains it."""

_HELPED = 0.9
"""The only assignment that there is has to leave no more than so much of it."""

_WORDS: dict[str, set[str]] = {
    "q": {"q", "query", "qcur", "wq"},
    "k": {"k", "key", "kcur", "wk"},
    "v": {"v", "value", "vcur", "wv"},
    "o": {"o", "wo"},
    "gate": {"gate", "w1"},
    "up": {"up", "w3", "fc1"},
    "down": {"down", "w2", "fc2"},
    "router": {"router"},
}
"""Words of names that say what a tensor is: the last hint."""


def filled(scene: Scene, walk: Walk) -> dict[Point, Step]:
    """The walk with sources for the points that are missing before a component which doesn't come out right: those that
    make it right, or the only ones that can be meant."""
    found = dict(walk)
    for point in walk:
        match = found[point].match
        if match is None or scene.exact(match):
            continue
        missing = [own for own in feeding(scene, found, point) if found[own].match is None]
        better = _explained(scene, found, point, missing) or _meant(scene, found, match, missing)
        found = better or found
    return found


def _explained(scene: Scene, walk: Walk, point: Point, missing: Sequence[Point]) -> dict[Point, Step] | None:
    """The assignment of tensors to missing points that explains most of a point's error, if one does; some of it where
    no point could have another tensor."""
    before = walk[point].match
    assert before is not None
    points = list(walk)
    until = {own: walk[own] for own in points[: points.index(point) + 1]}
    ways = [[{}, *options(scene, walk, own)] for own in missing]
    places = [{match.source.places for each in way for match in each.values()} for way in ways]
    limit = before.error * (_EXPLAINED if any(len(own) > 1 for own in places) else _HELPED)
    best, least = None, limit
    for way in islice(product(*ways), 1, _COMBINATIONS):
        changes = {own: match for each in way for own, match in each.items()}
        used = [match.source for match in changes.values()]
        if len(set(used)) < len(used):
            continue
        match = replayed(scene, until, changes)[point].match
        if match is not None and match.error < least:
            best, least = changes, match.error
            if scene.exact(match):
                break
    return None if best is None else replayed(scene, walk, best)


def _meant(scene: Scene, walk: Walk, match: Match, missing: Sequence[Point]) -> dict[Point, Step] | None:
    """Sources for missing points by where they are and what they are called."""
    changes: dict[Point, Match] = {}
    for point in missing:
        width = walk[point].expected.shape[-1]
        free = [value for value in scene.free(walk) if value.width == width]
        source = _fed(scene, walk, match, point, free)
        evidence: Evidence = "place"
        if source is None:
            named = [value for value in free if _words(value) & _WORDS.get(point.kind, set())]
            source, evidence = (Source((named[0].place,)) if len(named) == 1 else None), "name"
        if source is not None:
            changes[point] = Match(source, evidence, float("nan"))
    return replayed(scene, walk, changes) if changes else None


def _fed(scene: Scene, walk: Walk, match: Match, point: Point, free: Sequence[Value]) -> Source | None:
    """The input of the module whose output is the next point's, where that is computed from this point alone."""
    consumers = [own for own in walk if walk[own].match is match and scene.replica.inputs(own) == (point,)]
    inputs = [Place(place.record, "input") for place in match.source.places if consumers and place.side == "output"]
    known = [scene.catalogue.by_place[place] for place in inputs if place in scene.catalogue.by_place]
    return next((Source((value.place,)) for value in free if any(value is own for own in known)), None)


def _words(value: Value) -> set[str]:
    """Words of the name of an output, without the number of the layer."""
    if value.place.side == "input":
        return set()
    return set(re.findall(r"[a-z]+[0-9]?", value.place.record.lower()))
