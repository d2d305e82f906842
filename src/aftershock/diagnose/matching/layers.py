"""Match layer after layer; what is learnt in later ones says where to look again in earlier ones."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.matching.catalogue import Catalogue
from aftershock.diagnose.matching.search import tolerance_of
from aftershock.diagnose.matching.segments import matched
from aftershock.diagnose.matching.series import series_of
from aftershock.diagnose.matching.walking import Scene, Step
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.sources import LOGITS, Match, Matches, Place, Source


def scene_of(reference: Replica, tokens: Tokens, own: Catalogue) -> Scene:
    """The scene in which nothing is matched yet. `reference` has the target's arithmetic; what is expected of the
    target is computed in fp32."""
    layers = len(reference.architecture.layers)
    return Scene(
        replica=replace(reference, arithmetic=replace(reference.arithmetic, dtype=torch.float32)),
        tokens=tokens,
        catalogue=own,
        tolerance=tolerance_of(reference.arithmetic),
        series=series_of(own.by_place, layers).and_("logits", -1, Source((Place(LOGITS),))),
        taken={},
        anchor=0,
        reach=2 * len(own.values) // (layers + 2) + 8,
    )


def matches_of(scene: Scene) -> dict[Point, Match]:
    """The matches of all points that have one, in call order."""
    matches: dict[Point, Match] = {}
    points = scene.replica.points
    begin = Step(scene.replica.compute(points[0], (), scene.tokens), None, torch.empty(0))
    for number in (*range(len(scene.replica.architecture.layers)), -1):
        steps = _layer(scene, matches, number, begin)
        begin = steps[list(steps)[-1]]
        matches.update(_measured(scene, steps))
    for number in range(len(scene.replica.architecture.layers)):
        if _is_odd(scene, matches, number):
            matches = _again(scene, matches, number)
    return {point: matches[point] for point in points if point in matches}


def _layer(scene: Scene, matches: Matches, number: int, begin: Step) -> dict[Point, Step]:
    """The steps of a layer, those of the point that enters it first."""
    points = scene.replica.points
    inside = [point for point in points[1:] if point.layer == number]
    first = points.index(inside[0])
    entering = points[first - 1]
    before = [matches[point] for point in points[:first] if point.layer == entering.layer and point in matches]
    others = {point: match for point, match in matches.items() if point not in inside}
    last = max((number for match in before for number, _ in scene.channels(match.source)), default=0)
    return matched(replace(_knowing(scene, others), anchor=last), entering, begin, inside)


def _knowing(scene: Scene, matches: Matches) -> Scene:
    """The scene, given matches of other layers."""
    known: dict[str, dict[int, Source]] = {kind: dict(own) for kind, own in scene.series.known.items()}
    taken: Counter[int] = Counter()
    for point, match in matches.items():
        known.setdefault(point.kind, {})[point.layer] = match.source
        for number, channels in scene.channels(match.source):
            taken[number] += channels
    return replace(scene, series=replace(scene.series, known=known), taken=taken)


def _is_odd(scene: Scene, matches: Matches, number: int) -> bool:
    """Whether points of a layer are not where other layers have them, though something is there."""
    others = {point: match for point, match in matches.items() if point.layer != number}
    series = _knowing(scene, others).series
    for point in scene.replica.points:
        if point.layer == number:
            usual = series.foretold(point.kind, number)
            if usual is not None and (point not in matches or matches[point].source != usual):
                return True
    return False


def _again(scene: Scene, matches: dict[Point, Match], number: int) -> dict[Point, Match]:
    """The matches with those of one layer found anew, now that the other layers are known."""
    points = scene.replica.points
    entering = points[points.index(Point("attn_norm", number)) - 1]
    if entering not in matches:
        return matches
    values = scene.catalogue.shown(matches[entering].source)
    if values.rows is not None and len(values.rows) < len(scene.tokens.ids):
        return matches
    entered = values.into(values.values.to(scene.tokens.ids.device, torch.float32))
    steps = _layer(scene, matches, number, Step(entered, matches[entering], entered))
    found = _measured(scene, {point: step for point, step in steps.items() if point.layer == number})
    others = {point: match for point, match in matches.items() if point.layer != number}
    right = [sum(match.evidence == "value" for match in own.values()) for own in (matches, {**others, **found})]
    return {**others, **found} if right[1] >= right[0] else matches


def _measured(scene: Scene, steps: Mapping[Point, Step]) -> dict[Point, Match]:
    """The matches of steps with their errors over all rows."""
    found = {}
    for point, step in steps.items():
        if step.match is not None:
            shown = scene.catalogue.shown(step.match.source)
            expected = shown.of(step.expected).cpu()
            norms = torch.linalg.vector_norm(expected, dim=-1).clamp(min=torch.finfo(expected.dtype).tiny)
            errors = torch.linalg.vector_norm(shown.values.to(expected.dtype) - expected, dim=-1) / norms
            found[point] = replace(step.match, error=float(errors.nan_to_num(torch.inf, torch.inf).median()))
    return found
