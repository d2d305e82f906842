"""What can be wrong with the embedding of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.hypotheses.changes import Change, computed
from aftershock.diagnose.hypotheses.fitting import number, rounded, scale
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, listed, numbers
from aftershock.diagnose.hypotheses.positions import OFFSETS, Moved, moved, restarts, stretches
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.signatures import touched
from aftershock.diagnose.weights import Part

KINDS = ("embedding",)

LEFT = 0.1
"""Share of the sum of squares that vectors for each position leave at most."""

REPEATED = 0.5
"""Tokens of positions, at least, that another request has too: what is found at one is checked at the other."""

FEW = 0.5
"""Tokens at most, of those that occur, whose rows may be wrong."""


def embedding_multiplier(place: Place) -> Iterator[Candidate]:
    """Embeddings times another factor, or as they are."""
    own = place.replica.architecture.embedding_multiplier

    def of(factor: float) -> Change:
        return lambda replica, _: replace(
            replica, architecture=replace(replica.architecture, embedding_multiplier=factor)
        )

    width = place.replica.weights[Part("embedding", -1)].shape[-1]
    for factor in (1.0, width**0.5):
        if factor != own:
            yield Candidate("embedding_multiplier", of(factor), "factor", factor, own)
    if place.direct:
        # What is not multiplied: learned positions.
        rest = place.truth(of(0.0)(place.replica, -1))
        factor = own * scale(place.values - rest, place.expected - rest)
        factor = rounded(place, of, factor)
        yield Candidate("embedding_multiplier", of(factor), "factor", factor, own)
    else:
        for found in number(place, "embedding_multiplier", of, numbers(own / 128, own * 128, 57), own):
            yield replace(found, parameter="factor")


def learned_positions(place: Place) -> Iterator[Candidate]:
    """Learned positions left out, taken off or added twice; rows of other positions."""
    if place.replica.architecture.learned_from is None:
        return
    for times, words in {0.0: "left out", -1.0: "taken off", 2.0: "added twice"}.items():
        yield Candidate("position_embedding", _positions(times=times), "positions", words)
    for words, given in restarts(place):
        yield Candidate("position_embedding", _positions(given), "positions", words)
    for name, stretch in stretches(place).items():
        moves = {offset: _positions(moved(offset * stretch)) for size in OFFSETS for offset in (size, -size)}
        best = min(moves, key=lambda offset: place.error(moves[offset]))
        yield Candidate("position_embedding", moves[best], f"offset {name}", best, 0)


def _positions(given: Moved = lambda positions: positions, times: float = 1.0) -> Change:
    """Other learned positions, so many times. Beyond the table's ends its rows begin again."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        table = replica.weights[Part("position", -1)]
        first = replica.architecture.learned_from or 0
        own = replica.embedded(tokens)
        return own + times * table[(given(tokens.positions) + first) % len(table)].to(own.dtype)

    return computed("embedding", compute)


def position_embedding(place: Place) -> Iterator[Candidate]:
    """Something added to each token that its position alone decides: the mean of what is left over at the position, for
    prompts that repeat most of their positions."""
    positions = place.tokens.positions[place.numbers]
    times = torch.bincount(positions)
    if not place.direct or float((times[positions] > 1).double().mean()) < REPEATED:
        return
    left = place.shown.values.to(positions.device).double() - place.every_truth
    sums = torch.zeros(len(times), left.shape[-1], dtype=left.dtype).index_add(0, positions, left)
    added = sums / times.clamp(min=1)[:, None]
    if float((left - added[positions]).square().sum()) > LEFT * float(left.square().sum()):
        return

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        own = replica.own(point, inputs, tokens)
        return own + added[tokens.positions].to(own.dtype)

    yield Candidate("position_embedding", computed("embedding", compute), "added", "a vector for each position")


def rows_wrong(place: Place) -> Iterator[Candidate]:
    """Rows of other tokens, or any others, for a few of the tokens, or for all where most occur again: the same
    wherever such a token occurs."""
    ids = place.tokens.ids[place.numbers]
    wrong = touched(place.wrong.ratios)
    few = len(set(ids[wrong].tolist())) <= FEW * len(set(ids.tolist()))
    if not place.direct or not (few or float((torch.bincount(ids)[ids] > 1).double().mean()) >= REPEATED):
        return
    multiplier = place.replica.architecture.embedding_multiplier
    table = place.replica.weights[Part("embedding", -1)].double() * multiplier
    values = (place.shown.values.to(ids.device) - (place.every_truth - table[ids]))[wrong]
    nearest = (table.square().sum(-1) - 2 * values @ table.T).argmin(-1)
    named = f"tokens {listed(sorted(set(ids[wrong].tolist())))}"
    for name, rows in {"rows of other tokens": table[nearest], "other words": values}.items():
        yield Candidate("weight_rows_wrong", _replaced(ids[wrong], rows / multiplier), "rows", f"{named}: {name}")


def _replaced(ids: torch.Tensor, rows: torch.Tensor) -> Change:
    part = Part("embedding", -1)

    def change(replica: Replica, layer: int) -> Replica:
        words = replica.weights[part].double().index_copy(0, ids, rows)
        return replace(replica, weights={**replica.weights, part: words})

    return change


HYPOTHESES = (
    Hypothesis(KINDS, "number", embedding_multiplier),
    Hypothesis(KINDS, "choice", learned_positions),
    Hypothesis(KINDS, "free", rows_wrong),
    Hypothesis(KINDS, "free", position_embedding),
)
"""What can be wrong with the embedding."""
