"""What can be wrong with attention: its scale and cap, what a token sees, which key head it reads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from aftershock.diagnose.architecture import Attention
from aftershock.diagnose.functions import Tokens, attended, attended_among, seen, split
from aftershock.diagnose.hypotheses.changes import Change, after, computed, in_attention, with_values
from aftershock.diagnose.hypotheses.fitting import number
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, listed, numbers
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.signatures import struck, touched

KINDS = ("attention",)

LOOKED_AT = 6
"""Wrong tokens from which a window is read."""

KEPT = (1, 2, 4, 8)
"""First tokens that may be seen from everywhere."""


def _attention(place: Place) -> Attention:
    return place.replica.architecture.layers[place.layer].attention


def attention_scale(place: Place) -> Iterator[Candidate]:
    """Another factor of the scores."""
    own = _attention(place).scale

    def of(factor: float) -> Change:
        return in_attention(lambda attention: replace(attention, scale=own * factor))

    for found in number(place, "attention_scale", of, numbers(1 / 64, 64, 49), own):
        assert isinstance(found.found, float)
        yield replace(found, parameter="scale", found=own * found.found)


def attention_softcap(place: Place) -> Iterator[Candidate]:
    """No cap, another one, or one where there is none."""
    own = _attention(place).softcap
    if own is not None:
        none = in_attention(lambda attention: replace(attention, softcap=None))
        yield Candidate("attention_softcap", none, "softcap", "none", own)

    def of(cap: float) -> Change:
        return in_attention(lambda attention: replace(attention, softcap=cap))

    for found in number(place, "attention_softcap", of, numbers(0.5, 2000, 37), own or "none"):
        yield replace(found, parameter="softcap")


def window(place: Place) -> Iterator[Candidate]:
    """Another window, or none: read from a few of the last wrong tokens, which tell most windows apart."""
    architecture = place.replica.architecture
    own = _attention(place).window
    others = {layer.attention.window for layer in architecture.layers} - {own}
    for size in dict.fromkeys((*sorted(others, key=str), None, *_windows(place))):
        if size == own:
            continue
        mixed = len({layer.attention.window is None for layer in architecture.layers}) > 1
        cause = "window_layers" if size in others or (size is None and mixed) else "window_size"
        yield Candidate(cause, _windowed(size), "window", size or "none", own or "none")


def _windows(place: Place) -> Iterator[int]:
    """The window that fits best; from afar, those that begin to matter at the first wrong token."""
    positions = place.tokens.positions
    if place.direct:
        best = min((None, *range(1, int(positions.max()) + 2)), key=_window_error(place))
        yield from () if best is None else (best,)
        return
    shown = torch.arange(len(positions)) if place.wrong.rows is None else place.wrong.rows
    first, own = int(positions[shown[struck(place.wrong.ratios)]].min()), _attention(place).window or 0
    yield from (size for size in (first, first + 1, own + 1, 2 * own) if size > 0)


def _windowed(size: int | None) -> Change:
    return in_attention(lambda attention: replace(attention, window=size))


def _window_error(place: Place) -> Callable[[int | None], float]:
    """What a window leaves unexplained at a few of the wrong tokens."""
    q, k, v = place.inputs
    attention = _attention(place)
    ratios = place.wrong.ratios[place.fitted]
    late = struck(ratios).nonzero()[:, 0][-LOOKED_AT:]
    tokens = place.rows[late]
    starts = torch.repeat_interleave(
        torch.tensor([own.start for own in place.tokens.requests]), torch.tensor(place.tokens.lengths)
    )
    order = torch.arange(len(q))
    visible = (order <= tokens[:, None]) & (order >= starts[tokens][:, None])

    def error(size: int | None) -> float:
        counts = visible if size is None else visible & (tokens[:, None] - order < size)
        found = attended_among(q[tokens], k, v, replace(attention, window=None), counts)
        return float((found - place.values[late]).square().sum())

    return error


def causal_mask(place: Place) -> Iterator[Candidate]:
    """Later tokens seen, or the next one alone; not itself; the tokens of other requests."""
    everything = in_attention(lambda attention: replace(attention, causal=False))
    yield Candidate("causal_mask", everything, "sees", "later tokens too", "tokens up to itself")
    for name, change in {
        "the next token too": computed("attention", _shifted(1)),
        "not itself": computed("attention", _shifted(-1)),
        "the requests before": computed("attention", _run_together),
    }.items():
        yield Candidate("causal_mask", change, "sees", name, "tokens up to itself")


def _shifted(ahead: int) -> Callable[[Replica, Point, Sequence[torch.Tensor], Tokens], torch.Tensor]:
    """Attention to tokens up to so many after itself; the first token sees itself in any case."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        attention = replica.architecture.layers[point.layer].attention
        q, k, v = inputs
        found = []
        for own in tokens.requests:
            length = own.stop - own.start
            counts = seen(length, replace(attention, causal=False), q.device).tril(ahead)
            counts[0, 0] = True
            found.append(replica.arithmetic.attended_among(q[own], k[own], v[own], attention, counts))
        return torch.cat(found)

    return compute


def _run_together(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
    """Attention as if all requests were one."""
    attention = replica.architecture.layers[point.layer].attention
    q, k, v = inputs
    return replica.arithmetic.attended(q, k, v, attention, replace(tokens, lengths=(len(tokens.ids),)))


def kv_head_mapping(place: Place) -> Iterator[Candidate]:
    """Query heads that read other key heads: one after another, or for each the one that fits best."""
    own = _attention(place)
    turns = tuple(head % own.kv_heads for head in range(own.heads))
    if turns != own.reads:
        yield Candidate("kv_head_mapping", _reading(turns), "key heads", listed(turns), listed(own.reads))


def kv_head_matching(place: Place) -> Iterator[Candidate]:
    """Each query head with the key head that fits it best."""
    own = _attention(place)
    if not place.direct:
        return
    left = []
    for head in range(own.kv_heads):
        apart = place.truth(place.changed(_reading((head,) * own.heads))) - place.values
        left.append(apart.square().sum(0).view(own.heads, -1).sum(-1))
    reads = tuple(torch.stack(left).argmin(0).tolist())
    if reads != own.reads:
        yield Candidate("kv_head_mapping", _reading(reads), "key heads", listed(reads), listed(own.reads))


def _reading(reads: tuple[int, ...]) -> Change:
    return in_attention(lambda attention: replace(attention, reads=reads))


def attention_sink(place: Place) -> Iterator[Candidate]:
    """First tokens seen from beyond the window; none of them; a further score of 0 in the softmax."""
    own = _attention(place)
    if own.window is not None:
        for count in (count for count in (0, *KEPT) if count != own.kept):
            kept = in_attention(with_values(kept=count))
            yield Candidate("attention_sink", kept, "first tokens seen", count, own.kept)
    for sinks in {None, (0.0,) * own.heads} - {own.sinks}:
        change = in_attention(with_values(sinks=sinks))
        yield Candidate("attention_sink", change, "further score", "none" if sinks is None else 0.0)


def heads_missing(place: Place) -> Iterator[Candidate]:
    """Nothing but zeros from the heads that are wrong, as where a shard is missing."""
    if not place.direct:
        return
    count = _attention(place).heads
    kept = ~touched(place.wrong.channel_ratios).view(count, -1).any(-1)

    def edit(made: torch.Tensor) -> torch.Tensor:
        return (split(made, made.shape[-1] // count) * kept.to(made)[:, None]).flatten(-2)

    yield Candidate("heads_missing", after("attention", edit), "heads", listed((~kept).nonzero()[:, 0].tolist()))


def attention_sinks(place: Place) -> Iterator[Candidate]:
    """A further score in the softmax for each head, from how much smaller the head's values are than they should be."""
    own = _attention(place)
    if not place.direct or own.sinks is not None:
        return
    q, k, _ = place.inputs
    totals = _totals(q, k, own, place.tokens)[place.rows]
    values, expected = (values.view(len(place.rows), own.heads, -1) for values in (place.values, place.expected))
    shrunk = (values * expected).sum(-1) / expected.square().sum(-1)
    scores = (totals + (1 / shrunk.clamp(1e-6, 1 - 1e-9) - 1).log()).median(0).values
    sinks = tuple(scores.tolist())
    change = in_attention(lambda attention: replace(attention, sinks=sinks))
    yield Candidate("attention_sink", change, "further scores", listed([round(own, 4) for own in sinks]), "none")


def _totals(q: torch.Tensor, k: torch.Tensor, attention: Attention, tokens: Tokens) -> torch.Tensor:
    """Logarithm of the sum over keys of exp(score), shape (tokens, heads): from attention over values that are 1 for
    the keys and 0 for a further score of 0."""
    ones = torch.ones(len(k), attention.kv_heads * attention.channels, dtype=k.dtype)
    share = attended(q, k, ones, replace(attention, sinks=(0.0,) * attention.heads), tokens)
    own = share.view(len(q), attention.heads, -1)[..., 0]
    return torch.logit(own)


HYPOTHESES = (
    Hypothesis(KINDS, "choice", causal_mask),
    Hypothesis(KINDS, "choice", window),
    Hypothesis(KINDS, "choice", kv_head_mapping),
    Hypothesis(KINDS, "choice", attention_sink),
    Hypothesis(KINDS, "number", attention_scale),
    Hypothesis(KINDS, "number", attention_softcap),
    Hypothesis(KINDS, "structure", kv_head_matching),
    Hypothesis(KINDS, "choice", heads_missing),
    Hypothesis(KINDS, "structure", attention_sinks),
)
"""What can be wrong with attention."""
