"""Synthetic faults whose items share their fate."""

import numpy as np

from aftershock.numerics import generator


def beta_binomial_shares(
    seed: int, purpose: str, *, rate: float, correlation: float, items: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Shares of `items` failures, one per fault, float64 of the given shape: each fault draws its own chance of failing
    an item from the beta distribution of mean `rate` and intra-cluster `correlation` (1: all or nothing)."""
    rng = generator(seed, 0, purpose)
    if correlation == 1:
        chances = (rng.random(shape) < rate).astype(float)
    else:
        scale = 1 / correlation - 1
        chances = rng.beta(rate * scale, (1 - rate) * scale, size=shape)
    return rng.binomial(items, chances) / items
