"""Norms that compute something else: functions of the values that enter, the gain to be multiplied, and epsilon.

Values have shape (..., channels) and any dtype; sums are made in float32, as engines make them. They need torch alone.
"""

from collections.abc import Callable

import torch

Norm = Callable[..., torch.Tensor]
"""From (values, gain, eps) and named parameters to values of the same shape and dtype."""


def root_mean_square(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """The right one: values / sqrt(mean(values^2) + eps) * gain (Zhang and Sennrich, 2019)."""
    return _scaled(values, values, gain, eps)


def other_eps(values: torch.Tensor, gain: torch.Tensor, eps: float, value: float) -> torch.Tensor:
    """Another epsilon."""
    return _scaled(values, values, gain, value)


def offset_gain(values: torch.Tensor, gain: torch.Tensor, eps: float, by: float) -> torch.Tensor:
    """gain + by: 1 + w where the weights hold w themselves (by = 1), or the other way round (by = -1)."""
    return _scaled(values, values, gain + by, eps)


def without_gain(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """The gain left out."""
    return _scaled(values, values, torch.ones_like(gain), eps)


def gain_twice(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """The gain multiplied twice: folded into what follows, and kept here."""
    return _scaled(values, values, gain * gain, eps)


def centred(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """A LayerNorm: the mean over channels taken away first."""
    around_zero = values.float() - values.float().mean(-1, keepdim=True)
    return _scaled(around_zero, around_zero, gain, eps).to(values.dtype)


def over_part(values: torch.Tensor, gain: torch.Tensor, eps: float, share: float) -> torch.Tensor:
    """The mean square over the first share of the channels only (a shard that was never summed with the others)."""
    return _scaled(values, values[..., : int(values.shape[-1] * share)], gain, eps)


def mean_magnitude(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Divided by the mean magnitude, not by the root of the mean square."""
    wide = values.float()
    return _gained(wide / (wide.abs().mean(-1, keepdim=True) + eps), gain, values.dtype)


def across_heads(values: torch.Tensor, gain: torch.Tensor, eps: float, axis: int) -> torch.Tensor:
    """One mean square for all heads, which lie along `axis`, in place of one for each."""
    mean = values.float().pow(2).mean((axis, -1), keepdim=True)
    return _gained(values.float() * torch.rsqrt(mean + eps), gain, values.dtype)


def previous_token(values: torch.Tensor, gain: torch.Tensor, eps: float, axis: int) -> torch.Tensor:
    """Each token divided by the root mean square of the one before it along `axis` (a scale read one row too early)."""
    mean = values.float().pow(2).mean(-1, keepdim=True)
    count = values.shape[axis]
    before = torch.cat([mean.narrow(axis, 0, 1), mean.narrow(axis, 0, count - 1)], axis)
    return _gained(values.float() * torch.rsqrt(before + eps), gain, values.dtype)


def skipped(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """No norm at all."""
    return values


def _scaled(values: torch.Tensor, measured: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """`values` over the root mean square of `measured`, times the gain."""
    mean = measured.float().pow(2).mean(-1, keepdim=True)
    return _gained(values.float() * torch.rsqrt(mean + eps), gain, values.dtype)


def _gained(normed: torch.Tensor, gain: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Times the gain, in the gain's own dtype: Llama multiplies in the model's, Gemma in float32."""
    return (gain * normed.to(gain.dtype)).to(dtype)


NORMS: dict[str, Norm] = {
    each.__name__: each
    for each in (
        root_mean_square,
        other_eps,
        offset_gain,
        without_gain,
        gain_twice,
        centred,
        over_part,
        mean_magnitude,
        across_heads,
        previous_token,
        skipped,
    )
}
