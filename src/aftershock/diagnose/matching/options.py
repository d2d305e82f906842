"""What could be the source of a point that no tensor has the expected values of, by width alone."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, chain

import torch

from aftershock.diagnose.layouts import PLAIN, Layout, Transposed
from aftershock.diagnose.matching.columns import ranges_of
from aftershock.diagnose.matching.walking import Scene, Walk
from aftershock.diagnose.points import Point
from aftershock.diagnose.sources import Match, Source

SIBLINGS: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("gate", "up"))
"""Kinds that engines compute in one linear map, in this order."""


_SLACK = 2
"""Tensors of one call may stand in another order than the points."""


def options(scene: Scene, walk: Walk, point: Point) -> Iterator[dict[Point, Match]]:
    """Sources for a point that has none, each with those of the siblings in the same tensor that have none either.
    They come after what the point is computed from, and before what is computed from it."""
    width = walk[point].expected.shape[-1]
    family = siblings(walk, point)
    total = sum(walk[own].expected.shape[-1] for own in family)
    first, last = between(scene, walk, point)
    for value in scene.free(walk):
        if not first - _SLACK <= value.number <= last + _SLACK:
            continue
        if value.width == width:
            for layout in _layouts(scene, walk, point):
                yield {point: _unmeasured(Source((value.place,), layout))}
        elif len(family) > 1 and value.width == total:
            parts = split(walk, family, Source((value.place,)))
            yield {own: _unmeasured(source) for own, source in parts.items() if walk[own].match is None}


def between(scene: Scene, walk: Walk, point: Point) -> tuple[int, int]:
    """The numbers of the last matched tensor that a point is computed from, and of the first that is computed from it,
    as far as there are any."""
    before = [_number(scene, walk, own) for own in feeding(scene, walk, point) if walk[own].match is not None]
    after = [_number(scene, walk, own) for own in consumers(scene, walk, point)]
    return max(before, default=0), min(after, default=len(scene.catalogue.values))


def consumers(scene: Scene, walk: Walk, point: Point) -> list[Point]:
    """The matched points that are computed from a point, directly or through ones without a match."""
    return [own for own in walk if walk[own].match is not None and point in feeding(scene, walk, own)]


def _number(scene: Scene, walk: Walk, point: Point) -> int:
    match = walk[point].match
    assert match is not None
    return scene.catalogue.by_place[match.source.places[0]].number


def siblings(walk: Walk, point: Point) -> list[Point]:
    """The points of a walk that one linear map may compute together, the point among them."""
    kinds = next((kinds for kinds in SIBLINGS if point.kind in kinds), (point.kind,))
    return [own for own in (Point(kind, point.layer) for kind in kinds) if own in walk]


def split(walk: Walk, family: list[Point], source: Source) -> dict[Point, Source]:
    """The channels of one tensor dealt out to points, one after another."""
    ends = list(accumulate(walk[own].expected.shape[-1] for own in family))
    begins = [0, *ends]
    return {
        own: replace(source, layout=Layout((range(begin, end),)))
        for own, begin, end in zip(family, begins, ends, strict=False)
    }


def _layouts(scene: Scene, walk: Walk, point: Point) -> Iterator[Layout]:
    """The order that the channels of what the point is computed from have, that of heads and tokens of others, then
    none."""
    width = walk[point].expected.shape[-1]
    for own in scene.replica.inputs(point):
        match = walk[own].match if own in walk else None
        if match is not None and match.source.layout.width == width and match.source.layout.transposed is None:
            # The order alone, wherever in a larger tensor the channels are.
            places = torch.tensor(list(chain.from_iterable(match.source.layout.channels))).argsort().argsort()
            order = ranges_of(places, torch.ones(width, dtype=torch.bool), width)
            if order is not None and len(order) > 1:
                yield Layout(order)
    heads = scene.wanted(point, walk[point].expected).heads
    layouts = [step.match.source.layout for step in walk.values() if step.match is not None]
    groupings = dict.fromkeys(layout.transposed.grouping for layout in layouts if layout.transposed is not None)
    if heads is not None:
        for grouping in groupings:
            yield Layout(transposed=Transposed(heads, grouping))
    yield PLAIN


def _unmeasured(source: Source) -> Match:
    return Match(source, "next value", float("nan"))


def feeding(scene: Scene, walk: Walk, point: Point) -> list[Point]:
    """The points that a point's values follow from: its inputs, and for those without a match theirs too."""
    found: list[Point] = []
    for own in scene.replica.inputs(point):
        if own in walk:
            found += [own, *(feeding(scene, walk, own) if walk[own].match is None else ())]
    return list(dict.fromkeys(found))


def changed(walk: Walk, changes: Mapping[Point, Source]) -> dict[Point, Match]:
    """New sources for points, with the evidence that they had."""
    found = {}
    for point, source in changes.items():
        match = walk[point].match
        found[point] = Match(source, "next value" if match is None else match.evidence, float("nan"))
    return found
