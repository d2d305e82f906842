"""What can be wrong with the keys and values that attention reads back: their scale, their precision."""

from collections.abc import Iterator, Sequence

import torch

from aftershock.diagnose.architecture import Attention
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.hypotheses.changes import Change, Edit, computed
from aftershock.diagnose.hypotheses.fitting import best_number, scale
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, numbers
from aftershock.diagnose.hypotheses.rounding import TYPES, grouped, lower_than
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica

KINDS = ("attention",)


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def _attention(place: Place) -> Attention:
    return place.replica.architecture.layers[place.layer].attention


def _readers(place: Place) -> dict[str, torch.Tensor]:
    """Tokens that may read keys and values otherwise, by name: bool, shape (tokens,)."""
    found = {"": torch.ones(len(place.tokens.ids), dtype=torch.bool)}
    prompts = place.tokens.prompts
    if prompts is not None:
        pairs = zip(place.tokens.lengths, prompts, strict=True)
        after = torch.cat([torch.arange(length) >= prompt for length, prompt in pairs])
        if after.any():
            found[" after the prompts"] = after
    return found


def _read(keys: Edit, values: Edit, readers: torch.Tensor) -> Change:
    """Attention whose `readers` have other keys and values."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        q, k, v = inputs
        attention = replica.architecture.layers[point.layer].attention
        attend = replica.arithmetic.attended
        other = attend(q, keys(k), values(v), attention, tokens)
        return other if readers.all() else torch.where(readers[:, None], other, attend(q, k, v, attention, tokens))

    return computed("attention", compute)


def kv_scale(place: Place) -> Iterator[Candidate]:
    """Keys, or values, times a factor."""
    for when, readers in _readers(place).items():
        for which in ("values", "keys"):

            def of(factor: float, which: str = which, readers: torch.Tensor = readers) -> Change:
                def scaled(own: torch.Tensor) -> torch.Tensor:
                    return own * factor

                return _read(scaled, _same, readers) if which == "keys" else _read(_same, scaled, readers)

            factor = best_number(place, of, numbers(1 / 64, 64, 25))
            yield Candidate("kv_scale", of(factor), f"factor of {which}{when}", factor, 1.0)
        yield from _both_scaled(place, when, readers)


def _both_scaled(place: Place, when: str, readers: torch.Tensor) -> Iterator[Candidate]:
    """Keys and values times a factor each. Attention is linear in values, so that theirs follows by least squares."""
    if not place.direct or not readers.all():
        return

    def of_keys(factor: float) -> Change:
        return _read(lambda own: own * factor, _same, readers)

    def of(factor: float) -> Change:
        values = scale(place.values, place.truth(place.changed(of_keys(factor))))
        return _read(lambda own: own * factor, lambda own: own * values, readers)

    factor = best_number(place, of, numbers(1 / 64, 64, 25))
    values = scale(place.values, place.truth(place.changed(of_keys(factor))))
    yield Candidate(
        "kv_scale", of(factor), f"factors of keys and values{when}", f"{factor:.4g} and {values:.4g}", "1 and 1"
    )


def kv_precision(place: Place) -> Iterator[Candidate]:
    """Keys and values rounded to a lower precision."""
    own = _attention(place)
    groups = {"head": own.channels, "token": own.channels * own.kv_heads, "tensor": None}
    for lower in lower_than(place.replica.arithmetic.dtype, TYPES + grouped(groups)):
        for when, readers in _readers(place).items():
            both = _read(lower.rounding, lower.rounding, readers)
            yield Candidate("kv_precision", both, f"keys and values{when}", lower.name)
        everyone = torch.ones(len(place.tokens.ids), dtype=torch.bool)
        yield Candidate("kv_precision", _read(lower.rounding, _same, everyone), "keys", lower.name)
        yield Candidate("kv_precision", _read(_same, lower.rounding, everyone), "values", lower.name)


HYPOTHESES = (
    Hypothesis(KINDS, "choice", kv_precision),
    Hypothesis(KINDS, "number", kv_scale),
)
"""What can be wrong with keys and values as a whole."""
