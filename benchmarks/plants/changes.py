"""Wrong values in place of right ones: functions of a tensor of shape (..., channels), in its own dtype.

They need torch alone, so that any engine's environment can import them. Channels of several heads lie one head after
the other.
"""

import math
from collections.abc import Callable

import torch

Change = Callable[..., torch.Tensor]
"""From values and named parameters to values of the same shape."""


def scale(values: torch.Tensor, factor: float) -> torch.Tensor:
    """A constant factor too much."""
    return values * factor


def shift(values: torch.Tensor, by: float) -> torch.Tensor:
    """A constant too much on every channel."""
    return values + by


def ramp(values: torch.Tensor, most: float) -> torch.Tensor:
    """A bias where there is none: from -most on the first channel to most on the last."""
    return values + torch.linspace(-most, most, values.shape[-1]).to(values)


def clip(values: torch.Tensor, limit: float) -> torch.Tensor:
    """Nothing beyond +-limit."""
    return values.clamp(-limit, limit)


def round_to(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Rounded to a narrower format, as torch names it (`bfloat16`, `float8_e4m3fn`), and back."""
    return values.to(getattr(torch, dtype)).to(values.dtype)


def round_to_grid(values: torch.Tensor, levels: int) -> torch.Tensor:
    """Rounded to 2 * levels + 1 even steps up to each token's largest magnitude (levels = 127: dynamic int8)."""
    step = values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) / levels
    return (values / step).round() * step


def zero_channels(values: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Channels that nobody wrote."""
    channels = torch.arange(values.shape[-1], device=values.device)
    return values.masked_fill((channels >= first) & (channels < first + count), 0.0)


def spoil_last(values: torch.Tensor) -> torch.Tensor:
    """NaN in the first channel of the last token, from words beyond the input."""
    spoilt = values.clone()
    spoilt[..., -1, 0] = torch.nan
    return spoilt


def negate_alternate_heads(values: torch.Tensor, channels: int) -> torch.Tensor:
    """The other sign for every second head of so many channels."""
    heads = torch.arange(values.shape[-1], device=values.device) // channels
    return torch.where(heads % 2 == 1, -values, values)


def sort_channels(values: torch.Tensor) -> torch.Tensor:
    """Each token's channels in ascending order."""
    return values.sort(-1).values


def reverse_channels(values: torch.Tensor, channels: int) -> torch.Tensor:
    """The channels of every group of so many in reverse order (a vector register stored in the other byte order)."""
    return values.reshape(*values.shape[:-1], -1, channels).flip(-1).reshape(values.shape)


def saturate_largest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Each token's largest magnitude held at a share of itself (an accumulator that saturates)."""
    largest = values.abs().amax(-1, keepdim=True)
    return torch.where(values.abs() == largest, values * share, values)


def ripple(values: torch.Tensor, amplitude: float) -> torch.Tensor:
    """A factor that swings around 1 with the token's own first channel: another error for every token."""
    phase = values[..., :1].float() * 1000.0
    return values * (1.0 + amplitude * phase.sin()).to(values.dtype)


def rotate_hadamard(values: torch.Tensor, channels: int) -> torch.Tensor:
    """Every group of channels (a power of two) times the orthonormal Hadamard matrix: a rotation that nobody undid."""
    matrix = torch.ones(1, 1, dtype=torch.float32, device=values.device)
    while matrix.shape[0] < channels:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    groups = values.float().reshape(*values.shape[:-1], -1, channels)
    return (groups @ matrix / math.sqrt(channels)).reshape(values.shape).to(values.dtype)


def leak_neighbour(values: torch.Tensor, share: float) -> torch.Tensor:
    """Every channel takes a share of the next one (a tile's edge read twice)."""
    return values + share * values.roll(-1, -1)


def squash(values: torch.Tensor, limit: float) -> torch.Tensor:
    """Soft cap: limit * tanh(values / limit)."""
    return limit * torch.tanh(values / limit)


def swap_halves(values: torch.Tensor) -> torch.Tensor:
    """First and second half of the channels exchanged."""
    return torch.cat(tuple(reversed(values.chunk(2, dim=-1))), dim=-1)


def centre(values: torch.Tensor) -> torch.Tensor:
    """The mean over channels taken away."""
    return values - values.mean(-1, keepdim=True)


CHANGES: dict[str, Change] = {
    each.__name__: each
    for each in (
        scale,
        shift,
        ramp,
        clip,
        round_to,
        round_to_grid,
        zero_channels,
        spoil_last,
        negate_alternate_heads,
        sort_channels,
        reverse_channels,
        saturate_largest,
        ripple,
        rotate_hadamard,
        leak_neighbour,
        squash,
        swap_halves,
        centre,
    )
}
