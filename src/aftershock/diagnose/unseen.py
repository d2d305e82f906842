"""What these prompts in this arithmetic can't show."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch

from aftershock.diagnose.architecture import Rotation
from aftershock.diagnose.arithmetic import TRUTH
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.hypotheses.changes import Change, in_attention, in_rotation
from aftershock.diagnose.judging import OVERALL
from aftershock.diagnose.local import local
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Deviation, Target
from aftershock.diagnose.replica import Replica

TRIED = 0.01
"""Relative change of a parameter whose effect is measured; effects of changes so small are proportional to them."""

WORTH_SAYING = 1e-4
"""Changes of a parameter that are seen from here on need no word."""


def unseen(replica: Replica, tokens: Tokens, target: Target, deviations: Sequence[Deviation]) -> Iterator[str]:
    """Sentences on what could be wrong and not be seen."""
    limits = dict(smallest_seen(replica, tokens, target, deviations))
    if limits and max(limits.values()) > WORTH_SAYING:
        listed = ", ".join(f"{100 * limit:.2g} % in {name}" for name, limit in limits.items())
        dtype = str(replica.arithmetic.dtype).removeprefix("torch.")
        wider = ": run the target in float32 to see smaller ones" if replica.arithmetic.dtype.itemsize < 4 else ""
        yield f"relative errors below {listed} look like rounding in {dtype}{wider}"
    longest = max(tokens.lengths)
    windows = {layer.attention.window for layer in replica.architecture.layers} - {None}
    for window in sorted(own for own in windows if own is not None and own >= longest):
        yield f"a wrong window: the longest prompt has {longest:,} tokens, no more than the window's {window:,}"
    if tokens.prompts is None or sum(tokens.prompts) == sum(tokens.lengths):
        yield "errors of decoding alone: no generated token was fed again"
    hidden = [kind for kind in dict.fromkeys(own.kind for own in replica.points) if not _shown(kind, target)]
    if hidden:
        yield f"which of these is wrong, as the target does not show them: {', '.join(hidden)}"


def _shown(kind: str, target: Target) -> bool:
    return any(point.kind == kind for point in target)


def smallest_seen(
    replica: Replica, tokens: Tokens, target: Target, deviations: Sequence[Deviation]
) -> Iterator[tuple[str, float]]:
    """The smallest relative change of some parameters that a middle layer's error ratios would show."""
    layer = len(replica.architecture.layers) // 2
    noise = {own.point: float(own.noise.sum().sqrt()) for own in deviations}
    truth = replace(replica, arithmetic=TRUTH)
    for name, kind, change in _changes(replica, layer, noise.keys()):
        point = Point(kind, layer)
        if not noise.get(point):
            continue
        shown = target[point]
        before, after = (shown.of(local(own, tokens, target, point)) for own in (truth, change(truth, layer)))
        effect = float(torch.linalg.norm(after - before))
        if effect > 0:
            yield name, TRIED * OVERALL * noise[point] / effect


def _changes(replica: Replica, layer: int, shown: Collection[Point]) -> Iterator[tuple[str, str, Change]]:
    """Parameters, the kind of point that shows a change of each first, and the change."""
    yield "the attention scale", "attention", in_attention(lambda own: replace(own, scale=own.scale * (1 + TRIED)))
    if replica.architecture.layers[layer].attention.rotation is not None:
        yield "rope theta", "k_rope" if Point("k_rope", layer) in shown else "attention", in_rotation(_with_other_theta)


def _with_other_theta(rotation: Rotation) -> Rotation:
    count = len(rotation.frequencies)
    frequencies = tuple(own * (1 + TRIED) ** (-place / count) for place, own in enumerate(rotation.frequencies))
    return replace(rotation, theta=rotation.theta * (1 + TRIED), frequencies=frequencies)
