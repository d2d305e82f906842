"""Where a target shows the values of a point, and how that is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aftershock.diagnose.layouts import PLAIN, Layout
from aftershock.diagnose.points import Point

LOGITS = "logits"
"""The name under which a bundle's logits are found, which are no record."""

Side = Literal["output", "input"]

Evidence = Literal["value", "next value", "other layers", "place", "name", "user"]
"""How a point's source is known: `value`, it holds what the reference computes from the target's values before it;
`next value`, it makes the next component's computation come out right; `other layers`, it has the name that others have
in other layers; `place`, nothing else fits between those that are known; `name`, a word of its name; `user`, told."""


@dataclass(frozen=True, order=True)
class Place:
    """A tensor of a bundle: the output or the input of the record with this name."""

    record: str
    side: Side = "output"

    def __str__(self) -> str:
        return self.record if self.side == "output" else f"input of {self.record}"


@dataclass(frozen=True)
class Source:
    """A point's values: the sum of the tensors at `places`, laid out as `layout` says."""

    places: tuple[Place, ...]
    layout: Layout = PLAIN

    def __str__(self) -> str:
        return ", ".join(part for part in (" + ".join(map(str, self.places)), str(self.layout)) if part)


@dataclass(frozen=True)
class Match:
    """A source, how it is known, and the error: the median over the rows of the deviation of the target's values from
    what the reference computes, relative to its norm; NaN where it was not measured."""

    source: Source
    evidence: Evidence
    error: float


Matches = Mapping[Point, Match]
