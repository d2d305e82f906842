"""One component alone: what a point is when it is computed from what the target shows just before it."""

from dataclasses import replace

import torch

from aftershock.diagnose.arithmetic import TRUTH
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Deviation, Target, deviation
from aftershock.diagnose.replica import Replica


def parts(replica: Replica, target: Target, point: Point) -> tuple[Point, ...]:
    """The points whose computations lie between the target's values and a point: itself, and those before it that the
    target does not show in full. In call order."""
    found = {point}
    waiting = [point]
    while waiting:
        for source in replica.inputs(waiting.pop()):
            shown = target.get(source)
            if source not in found and (shown is None or shown.rows is not None):
                found.add(source)
                waiting.append(source)
    return tuple(own for own in replica.points if own in found)


@torch.inference_mode()
def local(replica: Replica, tokens: Tokens, target: Target, point: Point) -> torch.Tensor:
    """A point's values, shape (tokens, channels), computed from the target's, and from the replica's where the target
    shows none."""
    dtype, device = replica.arithmetic.dtype, tokens.ids.device
    known: dict[Point, torch.Tensor] = {}

    def value(source: Point) -> torch.Tensor:
        return known[source] if source in known else target[source].values.to(device, dtype)

    for own in parts(replica, target, point):
        computed = replica.compute(own, [value(source) for source in replica.inputs(own)], tokens)
        known[own] = target[own].into(computed) if own in target and own != point else computed
    return known[point]


def deviation_at(replica: Replica, tokens: Tokens, target: Target, point: Point) -> Deviation:
    """The deviation of one point alone; `replica` has the target's arithmetic."""
    truth, low = (
        target[point].of(local(own, tokens, target, point)) for own in (replace(replica, arithmetic=TRUTH), replica)
    )
    return deviation(replica, target, point, truth, low)
