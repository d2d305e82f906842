"""Find a point's values among tensors: those that equal what the reference computes, however they are laid out."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import torch

from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.layouts import Grouping, Layout, Transposed
from aftershock.diagnose.matching.catalogue import Catalogue, Value
from aftershock.diagnose.matching.columns import channels_of, directions
from aftershock.diagnose.sources import Source

_MOST = 0.9
"""The share of entries that have to be as expected."""

_UNITS = 4.0
"""Most entries of healthy values deviate by less than so many units in the last place, relative to themselves."""

_LEAST_UNIT = 2.0**-16
"""In fp32 and wider implementations of one function differ by more than the last place."""

_NEAR_ONE = 0.1
"""A factor that is nearer to 1 is no choice of units, but an error."""

_CHANNELS = 256
"""Channels that values are compared in at most."""

_GROUPINGS: tuple[Grouping, ...] = ("all", "request", "pass")


def tolerance_of(arithmetic: Arithmetic) -> float:
    """The deviation, as `apart` measures it, that a target's arithmetic explains."""
    types = [kind for kind in (arithmetic.dtype, arithmetic.cache, arithmetic.attention) if kind is not None]
    # What is cached in fewer bits is averaged over, and makes some points alone coarser.
    unit = min(max(torch.finfo(kind).eps for kind in types), torch.finfo(torch.bfloat16).eps)
    if arithmetic.activation_bits is not None:
        unit = max(unit, 2.0 ** (1 - arithmetic.activation_bits))
    return _UNITS * max(unit, _LEAST_UNIT)


def apart(expected: torch.Tensor, values: torch.Tensor) -> float:
    """What |values - expected| / (|values| + |expected|) is at most in nine of ten entries; shapes (rows, channels). 0
    for equal values, about 1 for unrelated ones.

    Entry by entry, since large entries, which some tokens and channels have, must not stand for all; not in all of
    them, since an error in a few does not make these values another point's. Entries that are zero or not finite on
    both sides tell nothing.
    """
    size = values.abs() + expected.abs()
    finite = torch.isfinite(values) | torch.isfinite(expected)
    told = (values - expected).abs().div(size).nan_to_num(1.0, 1.0)[finite & (size != 0)]
    if not len(told):
        return 0.0 if finite.all() else 1.0
    return float(told.kthvalue(math.ceil(_MOST * len(told))).values)


@dataclass(frozen=True, eq=False)
class Wanted:
    """A point's values as the reference computes them, shape (tokens, channels); the `heads` that they have, if any;
    whether they are `in_stream`, the sums that layers hand on, which engines may show as two values yet to be added."""

    values: torch.Tensor
    heads: int | None
    in_stream: bool

    @property
    def width(self) -> int:
        """Channels."""
        return self.values.shape[-1]


@dataclass(frozen=True)
class Found:
    """A source, and how far its values are from the wanted ones (`apart`)."""

    source: Source
    apart: float


def measured(own: Catalogue, wanted: Wanted, source: Source) -> Found:
    """How far a source is from what is wanted. Raises KeyError for a place that the bundle lacks."""
    expected = own.by_place[source.places[0]].like(wanted.values)
    # Some hundred channels tell as much as many thousand.
    step = 1 + wanted.width // _CHANNELS
    return Found(source, apart(expected[:, ::step], own.sample(source)[:, ::step]))


def glance(own: Catalogue, wanted: Wanted, candidates: Sequence[Value], tolerance: float) -> Found | None:
    """The candidate that holds the wanted values as they are, alone or among others."""
    same = [Source((value.place,)) for value in candidates if value.width == wanted.width]
    wider = [value for value in candidates if value.width > wanted.width]
    return _first(own, wanted, (chain(same, _rearranged(wanted, wider, tolerance)),), tolerance)


def search(own: Catalogue, wanted: Wanted, candidates: Sequence[Value], tolerance: float) -> Found | None:
    """The source among the candidates that holds the wanted values, None where there is none: one that has them as
    they are before one that has to be multiplied, rearranged, or added up."""
    found = glance(own, wanted, candidates, tolerance)
    if found is not None:
        return found
    same = [value for value in candidates if value.width == wanted.width]
    ways = (_multiplied(wanted, same), _rearranged(wanted, same, tolerance), _transposed(own, wanted, same))
    return _first(own, wanted, (*ways, _sums(same) if wanted.in_stream else ()), tolerance)


def _first(own: Catalogue, wanted: Wanted, ways: Iterable[Iterable[Source]], tolerance: float) -> Found | None:
    """The best source of the first way that has one."""
    for way in ways:
        found = min((measured(own, wanted, source) for source in way), key=lambda one: one.apart, default=None)
        if found is not None and found.apart <= tolerance:
            return found
    return None


def _sums(candidates: Sequence[Value]) -> Iterator[Source]:
    for first, second in combinations(candidates, 2):
        if len(first.tokens) == len(second.tokens) and torch.equal(first.tokens, second.tokens):
            yield Source((first.place, second.place))


def _rearranged(wanted: Wanted, candidates: Sequence[Value], tolerance: float) -> Iterator[Source]:
    for value in candidates:
        expected = value.like(wanted.values)
        channels = channels_of(directions(expected), value.directions, tolerance)
        if channels is not None:
            layout = Layout(() if channels == (range(value.width),) else channels)
            yield Source((value.place,), Layout(layout.channels, _factor(expected, layout.picked(value.sample))))


def _multiplied(wanted: Wanted, candidates: Sequence[Value]) -> Iterator[Source]:
    for value in candidates:
        factor = _factor(value.like(wanted.values), value.sample)
        if factor != 1.0:
            yield Source((value.place,), Layout(scale=factor))


def _factor(expected: torch.Tensor, values: torch.Tensor) -> float:
    """The constant that values have to be multiplied by, 1 where it is about that or no number."""
    ratios = (expected / values)[values != 0]
    ratios = ratios[torch.isfinite(ratios)]
    factor = float(ratios.median()) if len(ratios) else 1.0
    return 1.0 if factor == 0 or abs(factor - 1) < _NEAR_ONE else factor


def _transposed(own: Catalogue, wanted: Wanted, candidates: Sequence[Value]) -> Iterator[Source]:
    if wanted.heads is None:
        return
    for value in candidates:
        # All of a tensor's values, whatever their order, have one norm.
        norm = float(wanted.values[value.tokens.to(wanted.values.device)].double().norm())
        if abs(norm - value.norm) <= 0.02 * norm:
            for grouping in (grouping for grouping in _GROUPINGS if own.blocks[grouping]):
                yield Source((value.place,), Layout(transposed=Transposed(wanted.heads, grouping)))
