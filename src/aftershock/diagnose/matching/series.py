"""Names that repeat with the layer's number: what is known of one layer says where to look in another."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from aftershock.diagnose.sources import Place, Source

_NUMBER = re.compile(r"\d+")

_Pattern = tuple[str, str, str]
"""A place whose name has one number left out: what is before and behind that, and the side."""


@dataclass(frozen=True)
class Series:
    """The sources of points by kind and layer, among places that are `there`. `repeats` says how many of these there
    are for each pattern; one with more than the decoder has layers, as `node_7`, tells nothing."""

    known: Mapping[str, Mapping[int, Source]]
    there: frozenset[Place]
    repeats: Mapping[_Pattern, int]
    layers: int

    def and_(self, kind: str, layer: int, source: Source) -> "Series":
        """The series with one more source."""
        return replace(self, known={**self.known, kind: {**self.known.get(kind, {}), layer: source}})

    def foretold(self, kind: str, layer: int) -> Source | None:
        """Where the values of a kind are in a layer, if they are where the nearest other layer has them. None where
        nothing is there, or names don't tell."""
        own = self.known.get(kind, {})
        if layer in own:
            return own[layer]
        nearest = min(own, key=lambda other: (abs(other - layer), other), default=None)
        if nearest is None:
            return None
        source = own[nearest]
        places = [self._moved(place, layer - nearest) for place in source.places]
        found = [place for place in places if place is not None]
        return replace(source, places=tuple(found)) if len(found) == len(places) else None

    def _moved(self, place: Place, step: int) -> Place | None:
        """The place with one number of its name moved on, the first with which it is there and tells a layer."""
        for pattern, found in _patterns(place):
            moved = replace(place, record=f"{pattern[0]}{found + step}{pattern[1]}")
            if moved in self.there and self.repeats[pattern] <= self.layers + 1:
                return moved
        return None


def series_of(places: Iterable[Place], layers: int) -> Series:
    """A series without sources, of a decoder with so many layers."""
    there = frozenset(places)
    repeats = Counter(pattern for place in there for pattern, _ in _patterns(place))
    return Series({}, there, repeats, layers)


def skeleton(source: Source) -> tuple[object, ...]:
    """What of a source is the same in all layers: names without numbers, sides, layout."""
    return (*((_NUMBER.sub("#", place.record), place.side) for place in source.places), source.layout)


def _patterns(place: Place) -> Iterator[tuple[_Pattern, int]]:
    """The patterns of a place, one for each number of its name, and that number."""
    for found in _NUMBER.finditer(place.record):
        before, behind = place.record[: found.start()], place.record[found.end() :]
        yield (before, behind, place.side), int(found[0])
