"""The computations between points, each a pure function of values and one part of an `Architecture`.

They compute in the type of the values they get, as transformers does: norms, rotations and softmax in at least fp32,
everything else in the type itself. In fp64 they are the truth that rounding is told from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.activations import ACT2FN

from aftershock.diagnose.architecture import Attention, Mixture, Norm, Rotation

AT_ONCE = 2**24
"""Words of a weight that are converted at a time."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of all requests, one request after another: `ids` and `positions`, int64, shape (tokens,); `lengths` of
    the requests, and how many of each are its prompt (None: all). `passes` has the numbers of the tokens of each pass,
    where they are known."""

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    prompts: tuple[int, ...] | None = None
    passes: tuple[tuple[int, ...], ...] = ()

    @property
    def requests(self) -> list[slice]:
        """The tokens of each request."""
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]


Weigh = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Values, shape (heads, keys, channels), weighed by the softmax of scores, shape (heads, queries, keys or more): the
softmax is over all scores, those beyond the keys have no value. Shape (heads, queries, channels)."""


def wide(values: torch.Tensor) -> torch.Tensor:
    """Values in fp32, or in fp64 where they are."""
    return values if values.dtype == torch.float64 else values.float()


def split(values: torch.Tensor, channels: int) -> torch.Tensor:
    """Shape (tokens, n x channels) as (tokens, n, channels)."""
    return values.reshape(*values.shape[:-1], -1, channels)


def normalised(values: torch.Tensor, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Values, shape (tokens, channels), normalised; weight of shape (channels,), or (group,) for every group."""
    x = split(wide(values), norm.group or values.shape[-1])
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
    own = wide(weight.to(values.dtype)) if values.dtype != torch.float64 else weight.double()
    own = own.view(-1, x.shape[-1])
    # LayerNorm and Gemma multiply before they round, others after.
    fused = norm.centred or norm.offset
    y = x * (norm.offset + own) if fused else wide(x.to(values.dtype)) * own
    y = y.flatten(-2)
    return (y if bias is None else y + wide(bias.to(y.dtype))).to(values.dtype)


Angles = Callable[[Rotation, torch.Tensor, torch.dtype], torch.Tensor]
"""What pairs turn by at some positions, shape (tokens, pairs), in radians, computed in some type."""


def angles(rotation: Rotation, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Positions times frequencies; see `Angles`."""
    frequencies = torch.tensor(rotation.frequencies, dtype=torch.float64, device=positions.device).to(dtype)
    return positions.to(dtype)[:, None] * frequencies


def angles_in_turn(rotation: Rotation, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each pair's angle from the one before it, times theta^(-1 / pairs), as ggml has it; see `Angles`."""
    count = len(rotation.frequencies)
    step = torch.tensor(rotation.theta ** (-1 / count), dtype=dtype, device=positions.device)
    found = [positions.to(dtype)]
    for _ in range(1, count):
        found.append(found[-1] * step)
    plain = rotation.theta ** (-torch.arange(count, dtype=torch.float64) / count)
    scaling = torch.tensor(rotation.frequencies, dtype=torch.float64) / plain
    return torch.stack(found, -1) * scaling.to(positions.device, dtype)


def rotated(
    values: torch.Tensor, rotation: Rotation, channels: int, positions: torch.Tensor, angles_of: Angles = angles
) -> torch.Tensor:
    """Queries or keys, shape (tokens, heads x channels), turned by their positions (RoFormer, arXiv 2104.09864)."""
    x = split(values, channels)
    turning = 2 * len(rotation.frequencies)
    precision = rotation.precision or wide(values).dtype
    turned_by = angles_of(rotation, positions + rotation.offset, precision).double()
    table = (own.to(precision) * rotation.magnitude for own in (turned_by.cos(), turned_by.sin()))
    cos, sin = (own.to(values.dtype)[:, None] for own in table)
    turned, rest = x[..., :turning], x[..., turning:]
    if rotation.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        pairs = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((pairs, rest), -1).flatten(-2)


def softly(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weighed all at once, the softmax in the type of the values; see `Weigh`."""
    found: torch.Tensor = torch.softmax(scores, -1)[..., : values.shape[1]].to(values.dtype) @ values
    return found


def one_by_one(scores: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weighed key by key into a sum of some type, which is shrunk where a larger score comes, as fused kernels do
    (FlashAttention, arXiv 2205.14135, algorithm 1); see `Weigh`."""
    top = scores.cummax(-1).values
    shares = (scores - top).exp().nan_to_num(0.0)
    shrunk = torch.nn.functional.pad((top[..., :-1] - top[..., 1:]).exp().nan_to_num(0.0), (1, 0))
    total = torch.zeros_like(scores[..., :1])
    summed = torch.zeros(*scores.shape[:-1], values.shape[-1], dtype=dtype, device=values.device)
    for key in range(scores.shape[-1]):
        share, shrink = shares[..., key, None], shrunk[..., key, None]
        total = total * shrink + share
        summed = (summed * shrink).to(dtype)
        if key < values.shape[1]:
            summed = (summed + share * values[:, key, None]).to(dtype)
    return (summed / total).to(values.dtype)


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention: Attention, tokens: Tokens, weigh: Weigh = softly
) -> torch.Tensor:
    """softmax(scale x q k^T) v of each request, causal; shape (tokens, heads x channels)."""
    parts = []
    for own in tokens.requests:
        visible = seen(own.stop - own.start, attention, q.device)
        parts.append(attended_among(q[own], k[own], v[own], attention, visible, weigh))
    return torch.cat(parts)


def attended_among(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention: Attention,
    counts: torch.Tensor,
    weigh: Weigh = softly,
) -> torch.Tensor:
    """softmax(scale x q k^T) v, where query i sees key j `counts[i, j]` times, shape (queries, keys)."""
    reads = list(attention.reads)
    queries = split(q, attention.channels).transpose(0, 1)
    keys = split(k, attention.channels).transpose(0, 1)[reads]
    values = split(v, attention.channels).transpose(0, 1)[reads]
    scores = wide(capped(queries @ keys.transpose(-1, -2) * attention.scale, attention.softcap))
    scores = scores + counts.to(scores.dtype).log()
    if attention.sinks is not None:
        sinks = torch.tensor(attention.sinks, dtype=scores.dtype, device=scores.device)
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, len(q), 1)), -1)
    return weigh(scores, values).transpose(0, 1).flatten(-2)


def capped(values: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap x tanh(values / cap), or the values where there is no cap."""
    return values if cap is None else cap * torch.tanh(values / cap)


def seen(length: int, attention: Attention, device: torch.device) -> torch.Tensor:
    """Whether token i sees token j: bool, shape (length, length)."""
    order = torch.arange(length, device=device)
    apart = order[:, None] - order
    allowed = apart >= 0 if attention.causal else torch.ones_like(apart, dtype=torch.bool)
    if attention.window is None:
        return allowed
    return allowed & ((apart < attention.window) | (order < attention.kept))


def activated(
    gate: torch.Tensor | None, up: torch.Tensor, activation: str, table: torch.dtype | None = None
) -> torch.Tensor:
    """act(gate) x up, or act(up) where there is no gate; act is looked up in a `table` of some type where one is
    given."""
    x = up if gate is None else gate
    inner = ACT2FN[activation](x if table is None else x.to(table).to(x.dtype))
    acted: torch.Tensor = inner if table is None else inner.to(table).to(x.dtype)
    return acted if gate is None else acted * up


def chosen(logits: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """The share of each expert in each token, 0 for those that are not chosen: shape (tokens, experts)."""
    shares = torch.softmax(wide(logits), -1)
    top, index = shares.topk(mixture.chosen, -1)
    if mixture.normalised:
        top = top / top.sum(-1, keepdim=True)
    return torch.zeros_like(shares).scatter(-1, index, top * mixture.scale).to(logits.dtype)


def mixed(
    values: torch.Tensor,
    shares: torch.Tensor,
    activation: str,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """Sum over experts of share x down(act(gate x) * up x): gate, up (experts, inner, channels), down (experts,
    channels, inner)."""
    total = torch.zeros_like(values)
    for number, (g, u, d) in enumerate(zip(gate, up, down, strict=True)):
        rows = shares[:, number].nonzero()[:, 0]
        x = values[rows]
        inner = activated(linear(x, g), linear(x, u), activation)
        total.index_add_(0, rows, linear(inner, d) * shares[rows, number, None])
    return total


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """values x weight^T + bias in the values' type; weight (outputs, inputs) of any type, of which no more than a part
    is in that type at a time."""
    parts = torch.split(weight, max(AT_ONCE // weight.shape[-1], 1))
    found = [torch.nn.functional.linear(values, part.to(values.dtype)) for part in parts]
    made = found[0] if len(found) == 1 else torch.cat(found, -1)
    return made if bias is None else made + bias.to(values.dtype)
