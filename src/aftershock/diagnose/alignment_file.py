"""An alignment as a file: JSON that people can read, and write by hand for the points that they know better."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aftershock.diagnose.layouts import Grouping, Layout, Transposed, channels_text, parse_channels
from aftershock.diagnose.points import AFTER, BEFORE, KINDS, Point
from aftershock.diagnose.sources import Evidence, Match, Matches, Place, Side, Source
from aftershock.errors import InputError

FORMAT: Literal["aftershock-alignment"] = "aftershock-alignment"
VERSION = 1


class _Point(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    point: str
    layer: int = Field(default=-1, ge=-1)

    def place(self) -> Point:
        """The point itself."""
        return Point(self.point, self.layer)

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.point not in KINDS:
            raise ValueError(f"{self.point!r} is no kind of point: take one of {', '.join(KINDS)}")
        if (self.point in (*BEFORE, *AFTER)) != (self.layer < 0):
            raise ValueError(f"{self.point} {'needs the layer it is in' if self.layer < 0 else 'lies in no layer'}")
        return self


class _Place(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str
    side: Side = "output"


class _Entry(_Point):
    """One point's source. Only `point`, `layer` (inside the layers) and `records` have to be given."""

    records: tuple[str, ...] = Field(min_length=1)
    sides: tuple[Side, ...] = ()
    channels: str = ""
    scale: float = Field(default=1.0, allow_inf_nan=False)
    heads_first: int | None = Field(default=None, ge=1)
    block: Grouping = "all"
    evidence: Evidence = "user"
    error: float | None = None

    @model_validator(mode="after")
    def _is_laid_out(self) -> Self:
        if len(self.sides) not in (0, len(self.records)):
            raise ValueError(f"{self.place()} has {len(self.records)} records and {len(self.sides)} sides")
        parse_channels(self.channels)
        return self

    def match(self) -> Match:
        """The point's match."""
        sides = self.sides or tuple(Place(record).side for record in self.records)
        places = tuple(Place(record, side) for record, side in zip(self.records, sides, strict=True))
        transposed = None if self.heads_first is None else Transposed(self.heads_first, self.block)
        layout = Layout(parse_channels(self.channels), self.scale, transposed)
        return Match(Source(places, layout), self.evidence, math.nan if self.error is None else self.error)


class AlignmentFile(BaseModel):
    """The file. Only `format`, `version` and `points` have to be given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["aftershock-alignment"]
    version: int = Field(ge=1)
    order: tuple[int, ...] | None = None
    points: tuple[_Entry, ...]
    unmatched_points: tuple[_Point, ...] = ()
    unmatched_values: tuple[_Place, ...] = ()
    disagreements: tuple[str, ...] = ()

    @property
    def matches(self) -> dict[Point, Match]:
        """The points' matches."""
        return {entry.place(): entry.match() for entry in self.points}


def alignment_file(
    matches: Matches,
    unmatched_points: Sequence[Point],
    unmatched_values: Sequence[Place],
    disagreements: Sequence[str],
    order: tuple[int, ...] | None,
) -> AlignmentFile:
    """The file of an alignment with these parts."""
    return AlignmentFile(
        format=FORMAT,
        version=VERSION,
        order=order,
        points=tuple(_entry(point, match) for point, match in matches.items()),
        unmatched_points=tuple(_Point(point=point.kind, layer=point.layer) for point in unmatched_points),
        unmatched_values=tuple(_Place(record=place.record, side=place.side) for place in unmatched_values),
        disagreements=tuple(disagreements),
    )


def write_alignment_file(found: AlignmentFile, path: Path) -> None:
    """Write a file. Raises InputError where that is not possible."""
    try:
        path.write_text(found.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"alignment {path} can't be written ({error.strerror or error}): choose another file"
        ) from error


def read_alignment_file(path: Path) -> AlignmentFile:
    """The file of an alignment. Raises InputError for one that can't be read, is newer, or is none."""
    try:
        found = AlignmentFile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}): give the file of an alignment") from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{path} is no alignment: {f'{place}: ' if place else ''}{message}; see docs/diagnose.md, or save one"
        ) from None
    if found.version > VERSION:
        raise InputError(
            f"{path} was made by a newer aftershock (alignment version {found.version}): update aftershock"
        )
    return found


def _entry(point: Point, match: Match) -> _Entry:
    layout = match.source.layout
    sides = tuple(place.side for place in match.source.places)
    return _Entry(
        point=point.kind,
        layer=point.layer,
        records=tuple(place.record for place in match.source.places),
        sides=sides if "input" in sides else (),
        channels=channels_text(layout.channels),
        scale=layout.scale,
        heads_first=None if layout.transposed is None else layout.transposed.heads,
        block="all" if layout.transposed is None else layout.transposed.grouping,
        evidence=match.evidence,
        error=match.error if math.isfinite(match.error) else None,
    )
