"""Values rounded more than the target says."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from aftershock.diagnose.arithmetic import TRUTH
from aftershock.diagnose.functions import Tokens, activated, capped, seen, split
from aftershock.diagnose.hypotheses.changes import Change, Edit, after, computed, with_tensor
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place
from aftershock.diagnose.hypotheses.rounding import TYPES, Lower, Rounding, grouped, lower_than
from aftershock.diagnose.points import KINDS as ALL
from aftershock.diagnose.points import LINEAR, NORMED, Point
from aftershock.diagnose.replica import Compute, Replica
from aftershock.diagnose.weights import Part

BLOCKS = (32, 64, 128)
"""Words that may share a scale."""

WORDS = 2**26
"""Words at most of a tensor that is rounded as a whole."""

STEPS = (1, 8, 32, 128)
"""Products that are summed up before the sum is rounded."""

LEAST = 2 / 3
"""Rounding explains an error that is no smaller than this share of its own."""


def output_dtype(place: Place) -> Iterator[Candidate]:
    """Values that a lower precision holds exactly."""
    if not place.direct:
        return
    values = place.shown.values.double()
    for lower in lower_than(place.replica.arithmetic.dtype, TYPES):
        if torch.equal(lower.rounding(values), values):
            change = _rounded(place.kind, lower.rounding)
            own = str(place.replica.arithmetic.dtype).removeprefix("torch.")
            yield Candidate("output_dtype", change, "output", lower.name, own, LEAST)


def weight_precision(place: Place) -> Iterator[Candidate]:
    """Words rounded to another type before they came to that of the model, all or in groups with a scale each."""
    weight = place.replica.weights[Part(place.kind, place.layer)]
    if weight.numel() > WORDS:
        return
    sizes = {"tensor": None} | ({"row": weight.shape[-1]} if weight.dim() > 1 else {})
    for lower in _others(weight, sizes):
        change = with_tensor(place.kind, partial(_through, lower.rounding, weight.dtype))
        yield Candidate("weight_precision", change, "words", lower.name, _name(weight.dtype))


def table_precision(place: Place) -> Iterator[Candidate]:
    """The same of the embedding, of which the rows that are looked up are rounded alone."""
    weight = place.replica.weights[Part(place.kind, place.layer)]
    multiplier = place.replica.architecture.embedding_multiplier
    for lower in _others(weight, {"row": weight.shape[-1]}):

        def edit(rows: torch.Tensor, rounding: Rounding = lower.rounding) -> torch.Tensor:
            return _through(rounding, weight.dtype, rows / multiplier).to(rows.dtype) * multiplier

        yield Candidate("weight_precision", after("embedding", edit), "words", lower.name, _name(weight.dtype))


def _others(weight: torch.Tensor, sizes: Mapping[str, int | None]) -> Iterator[Lower]:
    """Precisions that words may have been in, other than their own."""
    row = weight.shape[-1]
    blocks = {f"block of {size}": size for size in BLOCKS if row % size == 0 and row > size}
    yield from (one for one in TYPES + grouped({**sizes, **blocks}) if one.name not in (_name(weight.dtype), "float32"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _through(rounding: Rounding, dtype: torch.dtype, weight: torch.Tensor) -> torch.Tensor:
    return rounding(weight.float().reshape(-1, weight.shape[-1])).to(dtype).reshape(weight.shape)


def function_dtype(place: Place) -> Iterator[Candidate]:
    """What the activation function takes and gives rounded to a lower precision."""
    own = str(place.replica.arithmetic.dtype).removeprefix("torch.")
    for dtype in (torch.float16, torch.bfloat16):
        if torch.finfo(dtype).eps > torch.finfo(place.replica.arithmetic.dtype).eps:
            name = str(dtype).removeprefix("torch.")
            yield Candidate("output_dtype", computed("activation", _looked_up(dtype)), "function", name, own)


def _looked_up(dtype: torch.dtype) -> Compute:
    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        gate = inputs[0] if len(inputs) == 2 else None
        return activated(gate, inputs[-1], replica.architecture.layers[point.layer].activation, dtype)

    return compute


def _rounded(kind: str, edit: Edit) -> Change:
    """Values of a kind rounded, wherever there is rounding at all."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        own = replica.own(point, inputs, tokens)
        return own if replica.arithmetic == TRUTH else edit(own)

    return computed(kind, compute)


def accumulation_dtype(place: Place) -> Iterator[Candidate]:
    """Sums of products kept in a lower precision."""
    if not place.direct:
        return
    for dtype in (torch.float16, torch.bfloat16):
        for steps in STEPS:
            yield _accumulated(place, dtype, f"products, {steps} at a time", _products(dtype, steps))


def accumulation_of_norms(place: Place) -> Iterator[Candidate]:
    """Squares and their mean in a lower precision."""
    if not place.direct:
        return
    for dtype in (torch.float16, torch.bfloat16):
        yield _accumulated(place, dtype, "squares", _squares(dtype))


def accumulation_of_attention(place: Place) -> Iterator[Candidate]:
    """Scores and softmax in a lower precision."""
    if not place.direct:
        return
    for dtype in (torch.float16, torch.bfloat16):
        yield _accumulated(place, dtype, "the softmax", _softmax(dtype))


def _accumulated(place: Place, dtype: torch.dtype, what: str, compute: Compute) -> Candidate:
    def rounded(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        chosen = replica.own if replica.arithmetic == TRUTH else partial(compute, replica)
        return chosen(point, inputs, tokens)

    name = str(dtype).removeprefix("torch.")
    return Candidate("accumulation_dtype", computed(place.kind, rounded), f"sum of {what}", name, "float32", LEAST)


def _products(dtype: torch.dtype, steps: int) -> Compute:
    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        x, weight = inputs[0], replica.weights[Part(point.kind, point.layer)].to(inputs[0].dtype)
        total = torch.zeros(len(x), len(weight), dtype=dtype, device=x.device)
        for some, words in zip(torch.split(x, steps, -1), torch.split(weight, steps, -1), strict=True):
            total += (some @ words.T).to(dtype)
        bias = replica.weights.get(Part(point.kind, point.layer, "bias"))
        return total.to(x.dtype) if bias is None else total.to(x.dtype) + bias.to(x.dtype)

    return compute


def _squares(dtype: torch.dtype) -> Compute:
    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        norm = replica.architecture.norm(point.kind, point.layer)
        weight = replica.weights[Part(point.kind, point.layer)].to(dtype)
        x = split(inputs[0].to(dtype), norm.group or inputs[0].shape[-1])
        x = x - x.mean(-1, keepdim=True) if norm.centred else x
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
        y = (y * (norm.offset + weight).view(-1, x.shape[-1])).flatten(-2)
        bias = replica.weights.get(Part(point.kind, point.layer, "bias"))
        return (y if bias is None else y + bias.to(dtype)).to(inputs[0].dtype)

    return compute


def _softmax(dtype: torch.dtype) -> Compute:
    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        attention = replica.architecture.layers[point.layer].attention
        found = []
        for own in tokens.requests:
            q, k, v = (split(values[own], attention.channels).transpose(0, 1) for values in inputs)
            k, v = (values[list(attention.reads)] for values in (k, v))
            scores = capped((q @ k.transpose(-1, -2) * attention.scale).to(dtype), attention.softcap)
            hidden = ~seen(own.stop - own.start, attention, q.device)
            shares = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
            found.append((shares.to(q.dtype) @ v).transpose(0, 1).flatten(-2))
        return torch.cat(found)

    return compute


HYPOTHESES = (
    Hypothesis(ALL, "choice", output_dtype),
    Hypothesis((*LINEAR, *NORMED), "choice", weight_precision, same_for_all=True),
    Hypothesis(("embedding",), "choice", table_precision, same_for_all=True),
    Hypothesis(("activation",), "choice", function_dtype),
    Hypothesis(NORMED, "free", accumulation_of_norms),
    Hypothesis(("attention",), "free", accumulation_of_attention),
    Hypothesis(LINEAR, "free", accumulation_dtype),
)
"""Values rounded more than they should be."""
