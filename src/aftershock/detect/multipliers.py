"""Fixed pseudo-random odd numbers that weigh words in sums."""

import torch

_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # as the signed 64-bit integers that torch has


def multipliers(count: int, seed: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """`count` odd numbers of 64 bits: int64, shape (count,). Number j depends on the seed and on j alone.

    They are the outputs of splitmix64 (Steele, Lea, Flood, OOPSLA'14) from `seed` on, made odd. `seed` is taken
    modulo 2^64.
    """
    signed = (seed + 2**63) % 2**64 - 2**63
    state = torch.arange(1, count + 1, dtype=torch.int64, device=device) * _STEP + signed
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return (state ^ _shifted(state, 31)) | 1


def _shifted(number: torch.Tensor, places: int) -> torch.Tensor:
    """Shift to the right that fills up with zeros."""
    return (number >> places) & ((1 << (64 - places)) - 1)
