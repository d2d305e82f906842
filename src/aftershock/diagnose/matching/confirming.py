"""A layout counts only if the next component's computation agrees with it: else it is an error that looks like one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, permutations

import torch

from aftershock.diagnose.layouts import Layout
from aftershock.diagnose.matching.columns import ranges_of
from aftershock.diagnose.matching.options import changed, consumers, feeding, siblings, split
from aftershock.diagnose.matching.walking import Scene, Step, Walk, replayed
from aftershock.diagnose.points import Point
from aftershock.diagnose.sources import Source

_FACTOR_COST = 0.4
"""What a factor counts beside a component that is not as expected: two factors for one error are no explanation."""

_SIDES = (("q", "q_norm", "q_rope"), ("k", "k_norm", "k_rope"), ("v",), ("gate",), ("up",))
"""Kinds that have one order of channels."""

_TURNED = ("q_norm", "k_norm", "q_rope", "k_rope")
"""Kinds that keep the order of channels of what they are computed from."""

_BETTER = 0.5
"""A reading that leaves so much less of the next component's error is the right one, though both leave some."""


def confirmed(scene: Scene, walk: Walk) -> dict[Point, Step]:
    """The walk without the layouts that the next components contradict."""
    found = _as_usual(scene, _without_factors(scene, dict(walk)))
    for point in walk:
        if found[point].match is not None and not scene.exact(found[point].match):
            found = _other_reading(scene, found, point)
    return _without_orders(scene, found)


def _other_reading(scene: Scene, walk: dict[Point, Step], point: Point) -> dict[Point, Step]:
    """The walk with the sources of a wrong point's inputs read otherwise, where that makes it come out right: the error
    is in the inputs then."""
    match = walk[point].match
    assert match is not None
    for changes in _readings(scene, walk, point):
        trial = replayed(scene, walk, changed(walk, changes))
        after = trial[point].match
        if after is not None and (scene.exact(after) or after.error < _BETTER * match.error):
            return trial
    return walk


def _readings(scene: Scene, walk: Walk, point: Point) -> Iterator[dict[Point, Source]]:
    """Other sources for what a point is computed from: those of its siblings, heads in the tensor's order, or all of
    its channels in the tensor's order."""
    inputs = [own for own in _origins(scene, walk, point) if walk[own].match is not None]
    for family in {tuple(siblings(walk, own)): None for own in inputs}:
        known = {own: match.source for own in family if (match := walk[own].match) is not None}
        for order in permutations(known):
            changes = {own: known[other] for own, other in zip(known, order, strict=True) if own != other}
            if changes and [_width(walk, own) for own in known] == [_width(walk, own) for own in order]:
                yield changes
    for read in (_by_heads, _plain):
        parts = [
            {own: source for own in (*inputs, point) if own.kind in side and (source := read(scene, walk, own))}
            for side in _SIDES
        ]
        # The point itself is read otherwise only along with what it is computed from.
        changing = [part for part in parts if part.keys() - {point}]
        yield from changing
        if len(changing) > 1:
            yield {own: source for part in changing for own, source in part.items()}


def _origins(scene: Scene, walk: Walk, point: Point) -> list[Point]:
    """What a point is computed from, and what norms and rotations before that are."""
    found = feeding(scene, walk, point)
    turned = [one for one in found if one.kind in _TURNED]
    return list(dict.fromkeys([*found, *(own for one in turned for own in feeding(scene, walk, one))]))


def _as_usual(scene: Scene, walk: dict[Point, Step]) -> dict[Point, Step]:
    """The walk with points read as in other layers where they are in the same tensor in another order, unless the next
    components agree with that order alone."""
    unusual = {point: source for point in walk if (source := _usual(scene, walk, point)) is not None}
    for kinds in (*_SIDES, *((point.kind,) for point in unusual if point.kind not in chain(*_SIDES))):
        changes = {point: source for point, source in unusual.items() if point.kind in kinds}
        after = [own for point in changes for own in consumers(scene, walk, point) if own not in changes]
        if changes:
            trial = replayed(scene, walk, changed(walk, changes))
            right = [all(scene.exact(one[own].match) for own in after) for one in (walk, trial)]
            walk = walk if right == [True, False] else trial
    return walk


def _usual(scene: Scene, walk: Walk, point: Point) -> Source | None:
    """The source that other layers have for a point, where it is the same tensor in another order."""
    match, usual = walk[point].match, scene.foretold(point, _width(walk, point))
    if match is None or usual is None or match.source.places != usual.places or match.source == usual:
        return None
    return usual


def _without_factors(scene: Scene, walk: dict[Point, Step]) -> dict[Point, Step]:
    """The walk without factors that explain nothing: those that a wrong component and all that follow it would have,
    and those that no component multiplies away."""
    factors = {
        point: replace(step.match.source, layout=replace(step.match.source.layout, scale=1.0))
        for point, step in walk.items()
        if step.match is not None and step.match.source.layout.scale != 1.0
    }
    if not factors:
        return walk
    trial = replayed(scene, walk, changed(walk, factors))
    if _cost(scene, trial) <= _cost(scene, walk):
        return trial
    for point, source in factors.items():
        trial = replayed(scene, walk, changed(walk, {point: source}))
        after = consumers(scene, walk, point)
        # The next component may be blind to it, as a norm is: then it is an error, as far as can be told.
        if all(scene.exact(trial[own].match) for own in after) and _error(trial, after) <= 2 * _error(walk, after):
            walk = trial
    return walk


def _error(walk: Walk, points: Sequence[Point]) -> float:
    return max((match.error for point in points if (match := walk[point].match) is not None), default=0.0)


def _without_orders(scene: Scene, walk: dict[Point, Step]) -> dict[Point, Step]:
    """The walk without orders of channels that no later point shows to be right."""
    for point, step in walk.items():
        if step.match is None or step.match.source.layout.is_plain or point.kind in ("residual", "embedding"):
            continue
        if not consumers(scene, walk, point):
            plain = _plain(scene, walk, point)
            if plain is not None:
                walk = replayed(scene, walk, changed(walk, {point: plain}))
    return walk


def _by_heads(scene: Scene, walk: Walk, point: Point) -> Source | None:
    """A point's source with the heads in the order in which the tensor has them. None where they are so already."""
    match = walk[point].match
    heads = scene.wanted(point, walk[point].expected).heads
    if match is None or heads is None or match.source.layout.width % heads or not match.source.layout.channels:
        return None
    columns = torch.tensor(list(chain.from_iterable(match.source.layout.channels))).view(heads, -1)
    ordered = columns[columns.amin(-1).argsort()].flatten()
    width = scene.catalogue.by_place[match.source.places[0]].width
    channels = ranges_of(ordered, torch.ones_like(ordered, dtype=torch.bool), width)
    if channels is None or channels == match.source.layout.channels:
        return None
    whole = channels == (range(width),)
    return replace(match.source, layout=replace(match.source.layout, channels=() if whole else channels))


def _plain(scene: Scene, walk: Walk, point: Point) -> Source | None:
    """A point's source read in the plainest way: all of the tensor, or dealt out to the siblings in it in their order.
    None where it is read so, or can't be."""
    match = walk[point].match
    if match is None or match.source.layout.is_plain:
        return None
    width = scene.catalogue.by_place[match.source.places[0]].width
    if width == _width(walk, point):
        return replace(match.source, layout=Layout())
    family = [own for own in siblings(walk, point) if _places(walk, own) == match.source.places]
    if sum(_width(walk, own) for own in family) == width:
        return split(walk, family, match.source)[point]
    return None


def _cost(scene: Scene, walk: Walk) -> float:
    matches = [step.match for step in walk.values() if step.match is not None]
    wrong = sum(not scene.exact(match) for match in matches)
    return wrong + _FACTOR_COST * sum(match.source.layout.scale != 1.0 for match in matches)


def _width(walk: Walk, point: Point) -> int:
    return walk[point].expected.shape[-1]


def _places(walk: Walk, point: Point) -> object:
    match = walk[point].match
    return None if match is None else match.source.places
