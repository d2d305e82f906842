"""Which of a target's tensors holds the values of which point: worked out from the values, no names of engines needed.

The reference's decoder is walked over the target's tokens. Each point is computed from the target's own values before
it and looked for among the target's tensors, so that an error before it does not matter, and neither does the name.
A component that is wrong itself is found by what comes after it: with its tensor in its place the next ones come out
right. A layout is taken for one only if the next component agrees with it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from aftershock.capture import Bundle
from aftershock.diagnose.alignment_file import alignment_file, read_alignment_file, write_alignment_file
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.matching.catalogue import Catalogue, catalogue, reordered
from aftershock.diagnose.matching.layers import matches_of, scene_of
from aftershock.diagnose.matching.series import skeleton
from aftershock.diagnose.matching.token_order import token_order
from aftershock.diagnose.matching.walking import Scene
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Target
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.sources import Match, Place, Source
from aftershock.errors import InputError


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where a target shows its points: `matches` in call order, the points it shows nowhere, its tensors that are no
    point, the points whose place differs from the other layers' (a sentence each), and the order of its tokens: the
    number that each of the bundle's tokens has in the requests (None: the same)."""

    matches: Mapping[Point, Match]
    unmatched_points: tuple[Point, ...] = ()
    unmatched_values: tuple[Place, ...] = ()
    disagreements: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None

    def target(self, bundle: Bundle) -> Target:
        """What a bundle of the aligned engine shows of each point.

        Raises InputError for a bundle that lacks a tensor, or has other channels in it.
        """
        own = _ordered(catalogue(bundle), self.order)
        for point, match in self.matches.items():
            _check_shown(own, point, match)
        return {point: own.shown(match.source) for point, match in self.matches.items()}

    def overridden(self, other: "Alignment") -> "Alignment":
        """This alignment with the sources that another one names, which win."""
        matches = {**self.matches, **other.matches}
        named = {place for match in other.matches.values() for place in match.source.places}
        return replace(
            self,
            matches=matches,
            unmatched_points=tuple(point for point in self.unmatched_points if point not in matches),
            unmatched_values=tuple(place for place in self.unmatched_values if place not in named),
            order=other.order or self.order,
        )

    def check(self, bundle: Bundle, widths: Mapping[Point, int]) -> None:
        """Raise InputError unless every source is the bundle's and as wide as its point. `widths` are the channels of
        the points that the reference has."""
        count = bundle.manifest.tokens
        if self.order is not None and sorted(self.order) != list(range(count)):
            raise InputError(
                f"the map's order is none of the bundle's {count} tokens: write each number from 0 to {count - 1} "
                "once, or leave it out"
            )
        own = catalogue(bundle)
        for point, match in self.matches.items():
            if point not in widths:
                raise InputError(f"the map has {point}, which the reference has not: leave it out")
            _check_shown(own, point, match)
            layout, whole = match.source.layout, own.by_place[match.source.places[0]].width
            if (layout.width or whole) != widths[point]:
                raise InputError(
                    f"the map has {point} of {layout.width or whole} channels ({match.source}), the reference of "
                    f"{widths[point]}: name the record and the channels that it is"
                )
            if layout.transposed is not None and whole % layout.transposed.heads:
                raise InputError(
                    f"the map has {layout.transposed.heads} heads for {point}, into which the {whole} channels of "
                    f"{match.source.places[0]} can't be divided: write how many heads the tensor has"
                )

    def save(self, path: str | Path) -> None:
        """Write it as JSON. Raises InputError where that is not possible."""
        parts = (self.matches, self.unmatched_points, self.unmatched_values, self.disagreements, self.order)
        write_alignment_file(alignment_file(*parts), Path(path))

    def table(self) -> Table:
        """The alignment for people."""
        table = Table("point", "source", "known by", "error", box=None)
        for point, match in self.matches.items():
            table.add_row(str(point), str(match.source), match.evidence, f"{match.error:.1e}")
        return table


def load_alignment(path: str | Path) -> Alignment:
    """The alignment in a file: one that was saved, or a few points written by hand, for `Alignment.overridden`.

    Raises InputError for a file that can't be read, is no alignment, or was made by a newer aftershock.
    """
    found = read_alignment_file(Path(path))
    return Alignment(
        matches=found.matches,
        unmatched_points=tuple(one.place() for one in found.unmatched_points),
        unmatched_values=tuple(Place(one.record, one.side) for one in found.unmatched_values),
        disagreements=found.disagreements,
        order=found.order,
    )


def align(reference: Replica, tokens: Tokens, bundle: Bundle) -> Alignment:
    """Where a target's bundle shows the points of the reference's decoder.

    `reference` has the target's arithmetic, `tokens` are the bundle's. Compares in fp32, layer by layer: beside the
    bundle one layer's values are held.
    """
    own = catalogue(bundle)
    scene = scene_of(reference, tokens, own)
    with torch.inference_mode():
        order = token_order(scene)
        scene = replace(scene, catalogue=_ordered(own, order))
        matches = matches_of(scene)
    used = [own.by_place[place] for match in matches.values() for place in match.source.places]
    numbers, contents = {value.number for value in used}, {value.content for value in used}
    return Alignment(
        matches=matches,
        unmatched_points=tuple(point for point in reference.points if point not in matches),
        unmatched_values=tuple(
            value.place for value in own.values if value.number not in numbers and value.content not in contents
        ),
        disagreements=tuple(_disagreements(scene, matches)),
        order=order,
    )


def _check_shown(own: Catalogue, point: Point, match: Match) -> None:
    if not own.has(match.source):
        raise InputError(
            f"the bundle lacks {match.source}, where the alignment has {point}: align this bundle anew, or mend the "
            "file that names it"
        )


def _ordered(own: Catalogue, order: tuple[int, ...] | None) -> Catalogue:
    return own if order is None else reordered(own, torch.tensor(order))


def _disagreements(scene: Scene, matches: Mapping[Point, Match]) -> Iterator[str]:
    """Points that are not where most layers have them, though something is there."""
    kinds: dict[str, dict[int, Source]] = {}
    for point, match in matches.items():
        kinds.setdefault(point.kind, {})[point.layer] = match.source
    for kind, sources in kinds.items():
        skeletons = {layer: skeleton(source) for layer, source in sources.items()}
        usual, count = Counter(skeletons.values()).most_common(1)[0]
        others = replace(scene.series, known={kind: {n: sources[n] for n, own in skeletons.items() if own == usual}})
        for layer, source in sources.items():
            there = others.foretold(kind, layer)
            if skeletons[layer] != usual and count > 1 and there is not None:
                yield f"{Point(kind, layer)} is {source}, not {there} as in {count} other layers"
