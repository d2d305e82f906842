"""What can be wrong with a normalisation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aftershock.diagnose.architecture import Norm
from aftershock.diagnose.functions import Tokens, normalised, split
from aftershock.diagnose.hypotheses.changes import Change, computed, joined, with_norm, with_tensor, with_tensors_of
from aftershock.diagnose.hypotheses.fitting import number
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, numbers
from aftershock.diagnose.points import ENTERING, NORMED, SOURCES, Point
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.signatures import touched
from aftershock.diagnose.weights import Part

SUMS = {"post_attn_norm": (ENTERING, "o"), "post_mlp_norm": ("attn_residual", "down")}
"""The norms of what is added to the residual, and both sides of that sum."""

SHARDS = (2, 4, 8)
"""Into how many parts tensors may have been cut."""


def _norm(place: Place) -> Norm:
    return place.replica.architecture.norm(place.kind, place.layer)


def norm_eps(place: Place) -> Iterator[Candidate]:
    """Another epsilon; none at all."""
    reference = _norm(place).eps
    yield Candidate("norm_eps", with_norm(place.kind, lambda norm: replace(norm, eps=0.0)), "eps", 0.0, reference)

    def of(eps: float) -> Change:
        return with_norm(place.kind, lambda norm: replace(norm, eps=eps))

    for found in number(place, "norm_eps", of, numbers(1e-13, 10.0, 57), reference):
        yield replace(found, parameter="eps")


def norm_offset(place: Place) -> Iterator[Candidate]:
    """w where it is 1 + w, or 1 + w where it is w."""
    other = 0.0 if _norm(place).offset else 1.0
    words = {0.0: "w", 1.0: "1 + w"}
    change = with_norm(place.kind, lambda norm: replace(norm, offset=other))
    yield Candidate("norm_offset", change, "weight", words[other], words[_norm(place).offset])


def norm_centred(place: Place) -> Iterator[Candidate]:
    """LayerNorm for RMSNorm, or the other way round."""
    words = {True: "LayerNorm", False: "RMSNorm"}
    own = _norm(place).centred
    change = with_norm(place.kind, lambda norm: replace(norm, centred=not norm.centred))
    yield Candidate("norm_centred", change, "norm", words[not own], words[own])


def norm_scope(place: Place) -> Iterator[Candidate]:
    """Over other groups of channels: all of them, one head's, one shard's."""
    own, channels = _norm(place).group, place.inputs[0].shape[-1]
    shards = {channels // count for count in SHARDS if channels % count == 0}
    if own is None:
        heads = {place.replica.architecture.layers[place.layer].attention.channels} if place.layer >= 0 else set()
        groups = {group for group in shards | heads if channels % group == 0}
    else:
        groups = {group for group in {channels} | shards if group > own and group % own == 0}
    for group in sorted(groups - {own}):
        yield Candidate("norm_scope", _over(place.kind, group, own), "channels", group, own or channels)


def _over(kind: str, group: int, own: int | None) -> Change:
    """A normalisation over groups, whose weight is that of `own` channels repeated."""
    change = with_norm(kind, lambda norm: replace(norm, group=group))
    if own is None:
        return change
    return joined(with_tensor(kind, lambda weight: weight.repeat(group // own)), change)


def norm_weight(place: Place) -> Iterator[Candidate]:
    """No weight, another norm's, or another layer's."""
    part, offset = Part(place.kind, place.layer), _norm(place).offset
    own = place.replica.weights[part]
    none = with_tensor(place.kind, lambda weight: torch.full_like(weight, 1 - offset))
    yield Candidate("norm_weight", none, "weight", "none")
    for other in (other for other in NORMED if other != place.kind and place.layer >= 0):
        words = place.replica.weights.get(Part(other, place.layer))
        if words is not None and words.shape == own.shape:
            yield Candidate("norm_weight", _weight_of(place, other, 0), "weight", f"that of {other}")
    for layer in range(len(place.replica.architecture.layers)):
        if Part(place.kind, layer) in place.replica.weights and layer != place.layer and place.layer >= 0:
            change = _weight_of(place, place.kind, layer - place.layer)
            yield Candidate("norm_weight", change, "weight", f"that of layer {layer}")


def _weight_of(place: Place, other: str, apart: int) -> Change:
    """The weight of another norm, and its bias where it has one, some layers apart (the first layer follows the
    last)."""
    count = len(place.replica.architecture.layers)
    return with_tensors_of(place.kind, lambda layer: Part(other, (layer + apart) % count))


def norm_words(place: Place) -> Iterator[Candidate]:
    """Any other weight, by least squares channel by channel."""
    if not place.direct:
        return
    norm, weight = _norm(place), place.replica.weights[Part(place.kind, place.layer)]
    plain = normalised(place.inputs[0], norm, torch.full_like(weight, 1 - norm.offset), None)[place.rows]
    bias = place.replica.weights.get(Part(place.kind, place.layer, "bias"))
    scaled = place.values if bias is None else place.values - bias.double()
    pairs = (split(own, len(weight)).flatten(0, -2) for own in (scaled, plain))
    values, plain = pairs
    found = (values * plain).sum(0) / plain.square().sum(0) - norm.offset
    wrong = touched(place.wrong.channel_ratios).view(-1, len(weight)).any(0)
    words = torch.where(wrong, found, weight.double())
    text = f"{int(wrong.sum())} of {len(weight)} words differ"
    yield Candidate("norm_weight", with_tensor(place.kind, lambda _: words), "weight", text)


def _same(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
    return replica.own(point, inputs, tokens)


def _nothing(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
    return inputs[0]


def _of_sum(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
    return replica.own(point, (inputs[0] + inputs[1],), tokens)


def norm_order(place: Place) -> Iterator[Candidate]:
    """A norm of what another norm was to be of, of the other side of the sum, or of the sum itself; no norm at all."""
    if place.kind in ("q_norm", "k_norm"):
        yield Candidate("qk_norm_missing", computed(place.kind, _nothing))
        if not place.direct:
            yield Candidate("qk_norm_missing", joined(*(computed(kind, _nothing) for kind in ("q_norm", "k_norm"))))
        return
    if place.kind == "mlp_norm":
        yield Candidate("norm_order", computed("mlp_norm", _same, (ENTERING,)), "input", "what enters the layer")
        last = place.replica.source(SOURCES["attn_residual"][-1], place.layer).kind
        yield Candidate("norm_order", computed("mlp_norm", _same, (last,)), "input", f"{last}, without the residual")
    if place.kind in SUMS:
        yield Candidate(
            "norm_order", computed(place.kind, _of_sum, SUMS[place.kind]), "input", "the sum with the residual"
        )
    yield Candidate("norm_order", computed(place.kind, _nothing), "norm", "missing")


def qk_norm_after_rotation(place: Place) -> Iterator[Candidate]:
    """Queries and keys turned before they are normalised."""
    attention = place.replica.architecture.layers[place.layer].attention
    if attention.norm is None or attention.rotation is None:
        return

    def swapped(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        kind = point.kind.replace("_rope", "_norm")
        turned = replica.own(point, inputs, tokens)
        return replica.own(Point(kind, point.layer), (turned,), tokens)

    change = joined(computed("q_rope", swapped, ("q",)), computed("k_rope", swapped, ("k",)))
    yield Candidate("norm_order", change, "norm", "after the rotation", "before the rotation")


HYPOTHESES = (
    Hypothesis(NORMED, "choice", norm_offset, same_for_all=True),
    Hypothesis(NORMED, "choice", norm_centred),
    Hypothesis(NORMED, "choice", norm_scope),
    Hypothesis(NORMED, "choice", norm_weight, same_for_all=True),
    Hypothesis(NORMED, "choice", norm_order),
    Hypothesis(("q_rope", "k_rope"), "choice", qk_norm_after_rotation),
    Hypothesis(NORMED, "number", norm_eps),
    Hypothesis(NORMED, "free", norm_words, same_for_all=True),
)
"""What can be wrong with a norm."""
