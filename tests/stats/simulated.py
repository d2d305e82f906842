"""Synthetic faults whose items share their fate."""

from itertools import pairwise

import numpy as np

from aftershock.numerics import generator
from aftershock.stats import Design, neyman_allocation, stratum_variances


def beta_binomial_shares(
    seed: int, purpose: str, *, rate: float, correlation: float, items: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Shares of `items` failures, one per fault, float64 of the given shape: each fault draws its own chance of failing
    an item from the beta distribution of mean `rate` and intra-cluster `correlation` (1: all or nothing)."""
    rng = generator(seed, 0, purpose)
    if correlation == 1 or rate in (0, 1):
        chances = (rng.random(shape) < rate).astype(float)
    else:
        scale = 1 / correlation - 1
        chances = rng.beta(rate * scale, (1 - rate) * scale, size=shape)
    return rng.binomial(items, chances) / items


def stratified_study(
    seed: int, index: int, chances: np.ndarray, rates: np.ndarray, *, correlation: float, ends: tuple[int, ...]
) -> tuple[np.ndarray, Design]:
    """Shares of 8 items and design of a study in rounds that end at `ends`: the first allocated in proportion to the
    strata, each later one by Neyman's rule from what was found before."""
    shares, design = np.empty(0), Design(*(np.empty(0, dtype=np.int64), chances, np.empty(0, dtype=np.int64)))
    for number, (begin, end) in enumerate(pairwise((0, *ends))):
        spreads = np.sqrt(stratum_variances(shares, design)) if begin else np.ones(chances.size)
        counts = neyman_allocation(chances, spreads, end - begin)
        drawn = [
            beta_binomial_shares(
                seed + stratum, f"{index} {number}", rate=rate, correlation=correlation, items=8, shape=(count,)
            )
            for stratum, (rate, count) in enumerate(zip(rates, counts, strict=True))
        ]
        shares = np.concatenate([shares, *drawn])
        design = Design(
            np.concatenate([design.strata, np.repeat(np.arange(chances.size), counts)]),
            chances,
            np.concatenate([design.rounds, np.full(end - begin, number)]),
        )
    return shares, design
