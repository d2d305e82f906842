"""From deviations to the points that are wrong.

Healthy values stay well below the thresholds. Over twelve tiny families and two real models in fp32, fp16 and bf16, in
transformers with eager and fused attention, vLLM, llama.cpp, ONNX Runtime and OpenVINO, no overall ratio was above 1.2,
no row and no channel above 2.4, and never three rows or three channels of a point above 2.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aftershock.diagnose.diagnosis import Suspect
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.local import parts
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Deviation, Target
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.signatures import Channels, Positions, channels_of, positions_of

OVERALL = 1.5
"""A point with a larger ratio over all its values is wrong (Ekka, arXiv 2606.04594: anything from 1.5 to 2.5 does)."""

ALONE = 5.0
"""A point is wrong where one row or one channel has a larger ratio,"""

FEW, TOGETHER = 3, 3.0
"""or where this many of its rows, or of its channels, have a larger ratio than this."""

SUSPECTS = 5
"""Components named at most."""

_BY_HEAD = ("q", "k", "v", "q_norm", "k_norm", "q_rope", "k_rope", "attention")


@dataclass(frozen=True, eq=False)
class Wrong:
    """A point that is wrong, where it is, and the points that may be the reason: those computed since the target's last
    values, itself the last."""

    deviation: Deviation
    parts: tuple[Point, ...]
    positions: Positions
    channels: Channels

    @property
    def point(self) -> Point:
        """The point."""
        return self.deviation.point

    @property
    def where(self) -> str:
        """Tokens and channels, in words."""
        return f"{self.positions}, {self.channels}"


@dataclass(frozen=True, eq=False)
class Judgement:
    """All wrong points in call order."""

    wrong: tuple[Wrong, ...]

    @property
    def onset(self) -> Point | None:
        """The first wrong point."""
        return self.wrong[0].point if self.wrong else None

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """The components that may be wrong, the most suspect first: those that are in call order of their first layer,
        then what the target hides of the first."""
        found: dict[str, Suspect] = {}
        for kind in dict.fromkeys(own.point.kind for own in self.wrong):
            same = [own for own in self.wrong if own.point.kind == kind]
            ratio = max(own.deviation.ratio for own in same)
            found[kind] = _suspect(kind, [own.point for own in same], ratio, same[0].where)
        for own in self.wrong[:1]:
            for kind in dict.fromkeys(part.kind for part in own.parts):
                hidden = [part for part in own.parts if part.kind == kind]
                found.setdefault(kind, _suspect(kind, hidden, own.deviation.ratio, f"hidden in {own.point.kind}"))
        return tuple(found.values())[:SUSPECTS]


def _suspect(kind: str, points: Sequence[Point], ratio: float, where: str) -> Suspect:
    layers = tuple(sorted({point.layer for point in points if point.layer >= 0}))
    return Suspect(component=kind, layers=layers, ratio=ratio, where=where)


def is_wrong(deviation: Deviation) -> bool:
    """Whether a point deviates by more than healthy rounding: all over, at some tokens, or in some channels."""
    return deviation.ratio > OVERALL or _stands_out(deviation.ratios) or _stands_out(deviation.channel_ratios)


def _stands_out(ratios: torch.Tensor) -> bool:
    return bool((ratios > ALONE).any()) or int((ratios > TOGETHER).sum()) >= FEW


def judge(deviations: Sequence[Deviation], replica: Replica, tokens: Tokens, target: Target) -> Judgement:
    """The points that are wrong, of those compared."""
    return Judgement(
        tuple(
            Wrong(
                deviation=own,
                parts=parts(replica, target, own.point),
                positions=positions_of(own, tokens),
                channels=channels_of(own, _head(replica, own.point)),
            )
            for own in deviations
            if is_wrong(own)
        )
    )


def _head(replica: Replica, point: Point) -> int | None:
    return replica.architecture.layers[point.layer].attention.channels if point.kind in _BY_HEAD else None
