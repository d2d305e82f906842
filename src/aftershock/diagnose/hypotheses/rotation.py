"""What can be wrong with rotary embeddings."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aftershock.diagnose.architecture import Rotation
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.hypotheses.changes import Change, computed, in_rotation, joined
from aftershock.diagnose.hypotheses.fitting import number
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, numbers
from aftershock.diagnose.hypotheses.positions import OFFSETS, Moved, moved, restarts, stretches
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica

KINDS = ("q_rope", "k_rope")

LLAMA3 = ((8.0, 8192), (32.0, 8192))
"""Factors and original lengths of the scaling that Llama 3.1 and 3.2 have."""


def _rotation(place: Place) -> Rotation:
    rotation = place.replica.architecture.layers[place.layer].attention.rotation
    assert rotation is not None
    return rotation


def _first(place: Place) -> bool:
    """Whether the kind is the first of the two that are turned alike, as far as they are in question."""
    return place.kind == "q_rope" or all(part.kind != "q_rope" for part in place.parts)


def _plain(theta: float, count: int) -> tuple[float, ...]:
    """Frequencies of `count` pairs without scaling."""
    return tuple(theta ** (-pair / count) for pair in range(count))


def rope_theta(place: Place) -> Iterator[Candidate]:
    """Another base: each frequency by its own power of the ratio of bases."""
    if not _first(place):
        return
    own = _rotation(place)

    def of(theta: float) -> Change:
        half = len(own.frequencies)
        ratio = theta / own.theta
        turned = tuple(frequency * ratio ** (-pair / half) for pair, frequency in enumerate(own.frequencies))
        return in_rotation(lambda rotation: replace(rotation, theta=theta, frequencies=turned))

    yield from number(place, "rope_theta", of, numbers(1e2, 1e8, 49), own.theta)


def rope_scaling(place: Place) -> Iterator[Candidate]:
    """No scaling where there is one; Llama 3's; no magnitude."""
    if not _first(place):
        return
    own = _rotation(place)
    plain = _plain(own.theta, len(own.frequencies))
    if not all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(plain, own.frequencies, strict=True)):
        yield Candidate("rope_scaling", _frequencies(plain), "scaling", "none", "as in the configuration")
        bare = in_rotation(lambda rotation: replace(rotation, frequencies=plain, magnitude=1.0))
        if own.magnitude != 1:
            yield Candidate("rope_scaling", bare, "scaling", "none", "as in the configuration")
    if own.magnitude != 1:
        one = in_rotation(lambda rotation: replace(rotation, magnitude=1.0))
        yield Candidate("rope_scaling", one, "magnitude", 1.0, own.magnitude)
    for factor, length in LLAMA3:
        scaled = _frequencies(_llama3(plain, factor, length))
        yield Candidate("rope_scaling", scaled, "scaling", f"Llama 3's, factor {factor:g}", "as in the configuration")


def rope_factor(place: Place) -> Iterator[Candidate]:
    """All frequencies divided by one factor (position interpolation, arXiv 2306.15595)."""
    if not _first(place):
        return
    own = _rotation(place)

    def of(factor: float) -> Change:
        return _frequencies(tuple(frequency / factor for frequency in own.frequencies))

    for found in number(place, "rope_scaling", of, numbers(1 / 64, 64, 73), 1.0):
        yield replace(found, parameter="linear factor")


def _frequencies(frequencies: tuple[float, ...]) -> Change:
    return in_rotation(lambda rotation: replace(rotation, frequencies=frequencies))


def _llama3(frequencies: Sequence[float], factor: float, length: int) -> tuple[float, ...]:
    """Long waves are divided by the factor, short ones kept, those between (1 to 4 periods in the original length)
    mixed (transformers, `rope_type: llama3`)."""
    found = []
    for frequency in frequencies:
        periods = length * frequency / (2 * math.pi)
        kept = min(max((periods - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        found.append((1 - kept) * frequency / factor + kept * frequency)
    return tuple(found)


def rope_layout(place: Place) -> Iterator[Candidate]:
    """Neighbouring channels paired where halves of the head are, or the other way round; pairs turned backwards."""
    if _first(place):
        back = _frequencies(tuple(-frequency for frequency in _rotation(place).frequencies))
        yield Candidate("rope_layout", back, "turned", "backwards", "forwards")
        words = {True: "interleaved", False: "halves"}
        own = _rotation(place).interleaved
        flipped = in_rotation(lambda rotation: replace(rotation, interleaved=not rotation.interleaved))
        yield Candidate("rope_layout", flipped, "pairs", words[not own], words[own])


def rope_partial(place: Place) -> Iterator[Candidate]:
    """Fewer or more of the pairs turned: with frequencies of their own, the first of those of all, or zeros."""
    if not _first(place):
        return
    own = _rotation(place)
    pairs, possible = len(own.frequencies), place.replica.architecture.layers[place.layer].attention.channels // 2
    for count in sorted({possible // 8, possible // 4, possible // 2, 3 * possible // 4, possible} - {0, pairs}):
        kept = (*own.frequencies[:count], *(0.0 for _ in range(pairs - count)))
        options = {_plain(own.theta, count), own.frequencies[:count] if count < pairs else kept, kept}
        for frequencies in sorted(options, key=len):
            yield Candidate("rope_partial", _frequencies(frequencies), "channels turned", 2 * count, 2 * pairs)


def rope_missing(place: Place) -> Iterator[Candidate]:
    """Queries, keys or both not turned."""
    if _first(place):
        for kinds in (KINDS, ("q_rope",), ("k_rope",)):
            found = " and ".join(kind[0] for kind in kinds)
            change = joined(*(computed(kind, lambda replica, point, inputs, tokens: inputs[0]) for kind in kinds))
            yield Candidate("rope_missing", change, "not turned", found)


def position_offset(place: Place) -> Iterator[Candidate]:
    """Positions that are off by a constant: at all tokens, or from where the first wrong one of each request is."""
    if not _first(place):
        return
    for name, stretch in stretches(place).items():
        # Attention sees no difference where queries and keys are all moved alike.
        for kinds in (KINDS, ("q_rope",)) if place.direct or not stretch.all() else (("q_rope",),):
            moves = {offset: _at(moved(offset * stretch), kinds) for size in OFFSETS for offset in (size, -size)}
            best = min(moves, key=lambda offset: place.error(moves[offset]))
            named = f"offset {name}" if kinds == KINDS else f"offset of queries {name}"
            yield Candidate("position_offset", moves[best], named, best, 0)


def position_reset(place: Place) -> Iterator[Candidate]:
    """Positions that start again, or run on."""
    if _first(place):
        for words, given in restarts(place):
            yield Candidate("position_reset", _at(given, KINDS), "positions", words)


def _at(given: Moved, kinds: tuple[str, ...]) -> Change:
    """Other positions for these kinds."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        attention = replica.architecture.layers[point.layer].attention
        assert attention.rotation is not None
        return replica.arithmetic.turned(inputs[0], attention.rotation, attention.channels, given(tokens.positions))

    return joined(*(computed(kind, compute) for kind in kinds))


def position_precision(place: Place) -> Iterator[Candidate]:
    """Positions, frequencies or their products rounded to 16 bits."""
    if not _first(place):
        return
    own = _rotation(place)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")

        def lower(rotation: Rotation, dtype: torch.dtype = dtype) -> Rotation:
            return replace(rotation, precision=dtype)

        def short(positions: torch.Tensor, dtype: torch.dtype = dtype) -> torch.Tensor:
            return positions.to(dtype).double()

        yield Candidate("position_precision", in_rotation(lower), "angles", name, "float32")
        few = tuple(torch.tensor(own.frequencies, dtype=torch.float64).to(dtype).double().tolist())
        yield Candidate("position_precision", _frequencies(few), "frequencies", name, "float32")
        yield Candidate("position_precision", _at(short, KINDS), "positions", name, "int64")


HYPOTHESES = (
    Hypothesis(KINDS, "choice", rope_layout),
    Hypothesis(KINDS, "choice", rope_scaling),
    Hypothesis(KINDS, "choice", rope_partial),
    Hypothesis(KINDS, "choice", rope_missing),
    Hypothesis(KINDS, "choice", position_precision),
    Hypothesis(KINDS, "number", rope_theta),
    Hypothesis(KINDS, "number", rope_factor),
    Hypothesis(KINDS, "structure", position_reset),
    Hypothesis(KINDS, "structure", position_offset),
)
"""What can be wrong with rotary embeddings."""
