"""Rows of keys and values that are not where they should be: slots unread, overwritten, or never written.

A token's attention is a sum of exp(score) x value over the rows it reads, divided by one of exp(score). How often each
row is in both follows from linear equations, one for each channel of each token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from aftershock.diagnose.architecture import Attention
from aftershock.diagnose.functions import Tokens, capped, seen, split
from aftershock.diagnose.hypotheses.changes import computed
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, listed
from aftershock.diagnose.points import Point
from aftershock.diagnose.replica import Compute, Replica
from aftershock.diagnose.signatures import struck

SLOTS = 64
"""Rows at most that are told to be read more or less often than they should."""

OUTSIDE = 0.1
"""Prior variance of how often a row is read that should not be, where that of the others is 1."""

UNREAD = -1
"""The source of a slot that is not seen."""


@dataclass(frozen=True, eq=False)
class _Equations:
    """`terms` x how often each row is read too often = `left`: fp64, shapes (equations, rows) and (equations,). `own`
    says which rows should be read, bool, shape (rows,); the last row is one of zeros. `noise` is the variance of what
    may be left over."""

    terms: torch.Tensor
    left: torch.Tensor
    own: torch.Tensor
    noise: float


Solve = Callable[[_Equations], torch.Tensor]
"""How much too often each row is read, shape (rows,)."""


@dataclass(frozen=True)
class _Reading:
    """What the tokens of one request from `since` on read instead of some of their own rows: from slot `slots[n]`, a
    token's number, the row of token `sources[n]`, `UNREAD`, or, one beyond the last token, zeros."""

    request: slice
    since: int
    slots: tuple[int, ...]
    sources: tuple[int, ...]


def kv_rows(place: Place) -> Iterator[Candidate]:
    """Slots that are not seen, or that hold the row of another token, or nothing but zeros, from a token on.

    Solved from all wrong tokens, and from the later half of them alone, which have seen more of the slots.
    """
    if not place.direct:
        return
    for share in (0.5, 0.0):
        for solve in (_within, _smooth, _few):
            readings = [_reading(place, request, share, solve) for request in place.tokens.requests]
            kept = [own for own in readings if own is not None]
            if kept:
                cause, named = _named(kept, place.tokens)
                yield Candidate(cause, computed("attention", _reread(kept)), "rows", named)


def _reading(place: Place, request: slice, left_out: float, solve: Solve) -> _Reading | None:
    """None where no token of the request is wrong, or none reads other rows; `left_out` of the wrong ones, the first,
    are not used."""
    wrong = struck(place.wrong.ratios)[place.fitted]
    own = (wrong & (place.rows >= request.start) & (place.rows < request.stop)).nonzero()[:, 0]
    own = own[int(left_out * len(own)) :]
    if not len(own):
        return None
    more = solve(_equations(place, request, own)).round()
    shown = torch.arange(len(place.tokens.ids)) if place.wrong.rows is None else place.wrong.rows
    since = next(row for row in shown[struck(place.wrong.ratios)].tolist() if row >= request.start)
    slots = (more[request] <= -1).nonzero()[:, 0] + request.start
    sources = torch.repeat_interleave(torch.arange(len(more)), more.clamp(0, len(slots)).long())[: len(slots)]
    if not len(slots):
        return None
    unread = (UNREAD,) * (len(slots) - len(sources))
    return _Reading(request, since, tuple(slots.tolist()), (*sources.tolist(), *unread))


def _equations(place: Place, request: slice, own: torch.Tensor) -> _Equations:
    """The equations of some of the fitted tokens: exp(score) x (value - what was found), over the sum of exp(score)."""
    attention: Attention = place.replica.architecture.layers[place.layer].attention
    tokens = place.rows[own]
    q, k, v = (split(values, attention.channels) for values in place.inputs)
    k, v = (torch.cat((values, torch.zeros_like(values[:1])))[:, list(attention.reads)] for values in (k, v))
    scores = capped(torch.einsum("qhc,khc->hqk", q[tokens], k) * attention.scale, attention.softcap)
    visible = torch.zeros(len(tokens), len(k), dtype=torch.bool)
    visible[:, request] = seen(request.stop - request.start, attention, tokens.device)[tokens - request.start]
    shares = (scores - scores.masked_fill(~visible, -torch.inf).logsumexp(-1, keepdim=True)).exp()
    found = split(place.values[own], attention.channels).transpose(0, 1)
    terms = shares[..., None] * (v.transpose(0, 1)[:, None] - found[:, :, None])
    left = -(terms * visible[None, :, :, None]).sum(2)
    noise = float(place.wrong.noise.sum()) / (len(place.wrong.noise) * place.values.shape[-1])
    return _Equations(terms.transpose(2, 3).flatten(0, 2), left.flatten(), visible.any(0), noise)


def _within(equations: _Equations) -> torch.Tensor:
    """The same where tokens read rows of their own request alone, if others than they should."""
    inside = replace(equations, terms=equations.terms[:, equations.own])
    found = torch.zeros(len(equations.own), dtype=equations.terms.dtype)
    found[equations.own] = _smooth(replace(inside, own=equations.own[equations.own]))
    return found


def _smooth(equations: _Equations) -> torch.Tensor:
    """Ridge regression: 0 where the equations say nothing."""
    prior = torch.where(equations.own, 1.0, OUTSIDE).double()
    normal = equations.terms.T @ equations.terms + torch.diag(equations.noise / prior)
    right = (equations.terms.T @ equations.left)[:, None]
    solved: torch.Tensor = torch.linalg.lstsq(normal, right, driver="gelsd").solution[:, 0]
    return solved


def _few(equations: _Equations) -> torch.Tensor:
    """Orthogonal matching pursuit: a few rows, none of which is read less often than never."""
    terms, left = equations.terms, equations.left
    sizes = terms.square().sum(0).sqrt().clamp(min=1e-30)
    found = torch.zeros(terms.shape[1], dtype=terms.dtype)
    chosen: list[int] = []
    rest = left
    while len(chosen) < min(SLOTS, len(left) // 2) and float(rest.square().mean()) > equations.noise:
        gain = rest @ terms / sizes
        gain = torch.where(equations.own, gain.abs(), gain)
        gain[chosen] = 0
        chosen.append(int(gain.argmax()))
        solved = torch.linalg.lstsq(terms[:, chosen], left[:, None], driver="gelsd").solution[:, 0]
        rest = left - terms[:, chosen] @ solved
        found = torch.zeros_like(found).index_copy(0, torch.tensor(chosen), solved)
    return found


def _reread(readings: Sequence[_Reading]) -> Compute:
    """Attention with some rows read from elsewhere."""

    def compute(replica: Replica, point: Point, inputs: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        attention = replica.architecture.layers[point.layer].attention
        q, k, v = inputs
        found = replica.arithmetic.attended(q, k, v, attention, tokens)
        k, v = (torch.cat((values, torch.zeros_like(values[:1]))) for values in (k, v))
        for own in readings:
            readers = torch.arange(own.since, own.request.stop)
            visible = seen(own.request.stop - own.request.start, attention, q.device)[readers - own.request.start]
            counts = torch.zeros(len(readers), len(k), dtype=torch.float64)
            counts[:, own.request] = visible.double()
            for slot, source in zip(own.slots, own.sources, strict=True):
                reading = visible[:, slot - own.request.start].double()
                counts[:, slot] -= reading
                if source != UNREAD:
                    counts[:, source] += reading
            found = found.index_copy(0, readers, replica.arithmetic.attended_among(q[readers], k, v, attention, counts))
        return found

    return compute


def _named(readings: Sequence[_Reading], tokens: Tokens) -> tuple[str, str]:
    """The cause, and which slots hold what."""
    pairs = [pair for own in readings for pair in zip(own.slots, own.sources, strict=True)]
    if all(source == UNREAD for _, source in pairs):
        return "kv_missing", f"{_runs([slot for slot, _ in pairs], tokens)} not read"
    later = all(slot < source < len(tokens.ids) for slot, source in pairs if source != UNREAD)
    slots, sources = (_runs(rows, tokens) for rows in zip(*pairs, strict=True))
    return "kv_overwritten" if later else "kv_stale", f"{slots} read as {sources}"


def _runs(rows: Sequence[int], tokens: Tokens) -> str:
    """Rows in words, those that follow each other together."""
    starts = {0, *(own.start for own in tokens.requests), len(tokens.ids)}
    found: list[list[int]] = []
    for row in rows:
        if found and row == found[-1][-1] + 1 and row not in starts:
            found[-1].append(row)
        else:
            found.append([row])
    return listed([_run_named(run, tokens) for run in found])


def _run_named(run: Sequence[int], tokens: Tokens) -> str:
    if run[0] == UNREAD:
        return "nothing"
    if run[0] == len(tokens.ids):
        return "zeros"
    number, request = next(
        (number, request) for number, request in enumerate(tokens.requests) if request.start <= run[0] < request.stop
    )
    first, last = run[0] - request.start, run[-1] - request.start
    return f"token {first} of request {number}" if first == last else f"tokens {first}-{last} of request {number}"


HYPOTHESES = (Hypothesis(("attention",), "structure", kv_rows),)
"""What can be wrong with where keys and values lie."""
