"""Attention, and the ways in which it can go wrong: queries, keys and values in, sums of values out.

It needs torch alone. Nothing here keeps a cache: what a cache would do wrong (rows lost, overwritten, scaled, rounded)
is done to the keys and values that queries see.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Attended:
    """What one attention sees. `query` has shape (rows, heads, queries, channels), `key` and `value` (rows, KV heads,
    keys, channels); `allowed` (rows or 1, 1, queries, keys) says which keys a query may see. The queries are the last
    of the keys' tokens. `scaling` multiplies scores; `softcap`, if any, bounds them."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    allowed: torch.Tensor
    scaling: float
    softcap: float | None = None

    @property
    def distances(self) -> torch.Tensor:
        """How many tokens back each key lies, shape (queries, keys); negative: ahead."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        return torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)


Weigh = Callable[[torch.Tensor], torch.Tensor]
"""From scores, float32, shape (rows, heads, queries, keys), to weights of the values."""


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """The right weights."""
    return scores.softmax(-1)


def attend(seen: Attended, weigh: Weigh = softmax) -> torch.Tensor:
    """Sums of values, shape (rows, queries, heads, channels): step by step, to the words that transformers' eager
    attention gives."""
    groups = seen.query.shape[1] // seen.key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (seen.key, seen.value))
    scores = torch.matmul(seen.query, key.transpose(2, 3)) * seen.scaling
    if seen.softcap is not None:
        scores = torch.tanh(scores / seen.softcap) * seen.softcap
    scores = scores.masked_fill(~seen.allowed, torch.finfo(scores.dtype).min)
    weights = weigh(scores.float()).to(seen.query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


# What is seen.


def rescale(seen: Attended, factor: float) -> Attended:
    """Scores times a factor."""
    return replace(seen, scaling=seen.scaling * factor)


def cap(seen: Attended, softcap: float) -> Attended:
    """Another soft cap of the scores."""
    return replace(seen, softcap=softcap)


def uncap(seen: Attended) -> Attended:
    """No soft cap."""
    return replace(seen, softcap=None)


def window(seen: Attended, size: int) -> Attended:
    """A causal window of another size."""
    return replace(seen, allowed=((seen.distances >= 0) & (seen.distances < size))[None, None])


def no_window(seen: Attended) -> Attended:
    """Every token before, whatever the window."""
    return replace(seen, allowed=(seen.distances >= 0)[None, None])


def chunked(seen: Attended, size: int) -> Attended:
    """Tokens of the same chunk only, in place of a window that slides."""
    count = seen.key.shape[2]
    chunk = torch.arange(count) // size
    own = chunk[count - seen.query.shape[2] :, None] == chunk
    return replace(seen, allowed=(own & (seen.distances >= 0))[None, None])


def look_ahead(seen: Attended, tokens: int) -> Attended:
    """So many tokens that are still to come are seen too."""
    return replace(seen, allowed=seen.allowed | ((seen.distances < 0) & (seen.distances >= -tokens)))


def blind_to_self(seen: Attended) -> Attended:
    """A query does not see its own token (but the first one does, which has no other)."""
    return replace(seen, allowed=seen.allowed & ((seen.distances > 0) | (torch.arange(seen.key.shape[2]) == 0)))


def lose(seen: Attended, first: int, count: int) -> Attended:
    """Rows of the cache that nobody reads."""
    return replace(seen, allowed=seen.allowed & (~_slots(seen, first, count) | (seen.distances <= 0)))


def hold_other(seen: Attended, first: int, count: int, by: int) -> Attended:
    """Rows of the cache hold the keys and values of tokens `by` later (negative: earlier, as if never renewed)."""
    slots = _slots(seen, first, count)[:, None]
    key, value = (torch.where(slots, states.roll(-by, 2), states) for states in (seen.key, seen.value))
    return replace(seen, key=key, value=value)


def scale_cache(seen: Attended, key: float, value: float) -> Attended:
    """Keys and values times a factor each: a scale applied twice, or not at all."""
    return replace(seen, key=seen.key * key, value=seen.value * value)


def round_cache(seen: Attended, dtype: str) -> Attended:
    """Keys and values rounded to a narrower format."""
    key, value = (states.to(getattr(torch, dtype)).to(states.dtype) for states in (seen.key, seen.value))
    return replace(seen, key=key, value=value)


def lose_value_heads(seen: Attended, first: int) -> Attended:
    """Nothing but zeros in the value heads from a number on: those of a worker that is not there."""
    value = seen.value.clone()
    value[:, first:] = 0
    return replace(seen, value=value)


def tile_heads(seen: Attended) -> Attended:
    """Query head i reads KV head i mod KV heads, in place of i divided by the size of a group."""
    groups = seen.query.shape[1] // seen.key.shape[1]
    key, value = (states.repeat(1, groups, 1, 1) for states in (seen.key, seen.value))
    return replace(seen, key=key, value=value)


def first_head_for_all(seen: Attended) -> Attended:
    """Every query head reads the first KV head (every shard holds the same one)."""
    key, value = (states[:, :1].expand_as(states) for states in (seen.key, seen.value))
    return replace(seen, key=key, value=value)


def values_of_next_head(seen: Attended) -> Attended:
    """Keys of one KV head, values of the next."""
    return replace(seen, value=seen.value.roll(-1, 1))


def values_one_late(seen: Attended) -> Attended:
    """Each key goes with the value of the token after it; the last with its own."""
    return replace(seen, value=torch.cat([seen.value[:, :, 1:], seen.value[:, :, -1:]], 2))


def _slots(seen: Attended, first: int, count: int) -> torch.Tensor:
    """Which keys lie in some rows of the cache, shape (keys,)."""
    keys = torch.arange(seen.key.shape[2])
    return (keys >= first) & (keys < first + count)


SIGHTS: dict[str, Callable[..., Attended]] = {
    each.__name__: each
    for each in (
        rescale,
        cap,
        uncap,
        window,
        no_window,
        chunked,
        look_ahead,
        blind_to_self,
        lose,
        hold_other,
        scale_cache,
        round_cache,
        lose_value_heads,
        tile_heads,
        first_head_for_all,
        values_of_next_head,
        values_one_late,
    )
}


# How it is weighed.


def sink(scores: torch.Tensor, logit: float) -> torch.Tensor:
    """One more score that takes its share and has no value."""
    extra = torch.full_like(scores[..., :1], logit)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]


def base_two(scores: torch.Tensor) -> torch.Tensor:
    """Powers of 2 in place of e, the factor log2(e) forgotten."""
    return (scores * 0.6931471805599453).softmax(-1)


def dropped(scores: torch.Tensor, every: int) -> torch.Tensor:
    """One weight of `every` dropped, the others enlarged to make up for it: dropout left on (by a fixed pattern)."""
    _, heads, queries, keys = scores.shape
    pattern = 7 * torch.arange(heads)[:, None, None] + 5 * torch.arange(queries)[:, None] + 3 * torch.arange(keys)
    return scores.softmax(-1).masked_fill(pattern % every == 0, 0.0) * every / (every - 1)


def largest_only(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Only the largest scores count."""
    least = scores.topk(min(count, scores.shape[-1]), -1).values[..., -1:]
    return scores.masked_fill(scores < least, -torch.inf).softmax(-1)


def blocks_not_rescaled(scores: torch.Tensor, block: int) -> torch.Tensor:
    """Every block of keys measured from its own maximum, and never brought to a common one."""
    parts = [scores[..., start : start + block] for start in range(0, scores.shape[-1], block)]
    highest = torch.cat([part.amax(-1, keepdim=True).expand_as(part) for part in parts], -1)
    masked = scores <= torch.finfo(scores.dtype).min
    powers = (scores - highest).exp().masked_fill(masked, 0.0)
    return powers / powers.sum(-1, keepdim=True)


def biased_by_distance(scores: torch.Tensor, slope: float) -> torch.Tensor:
    """A penalty that grows with distance (ALiBi), in a model that has none; heads alike."""
    keys = torch.arange(scores.shape[-1])
    return (scores + slope * keys).softmax(-1)


def alternate_sign(scores: torch.Tensor) -> torch.Tensor:
    """Every second head's output negated."""
    signs = 1 - 2 * (torch.arange(scores.shape[1]) % 2)
    return scores.softmax(-1) * signs[:, None, None]


def eight_bits(scores: torch.Tensor) -> torch.Tensor:
    """Weights rounded to multiples of 1/255."""
    return (scores.softmax(-1) * 255).round() / 255


WEIGHINGS: dict[str, Callable[..., torch.Tensor]] = {
    each.__name__: each
    for each in (
        sink,
        base_two,
        dropped,
        largest_only,
        blocks_not_rescaled,
        biased_by_distance,
        alternate_sign,
        eight_bits,
    )
}
