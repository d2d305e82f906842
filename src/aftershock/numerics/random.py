"""Randomness as a function: the same (seed, index, purpose) gives the same numbers on any machine.

Counter-based (Philox 4x64, Salmon et al., SC'11): the key is (seed, purpose) and the counter starts at the
index, so draws for trial 7 never depend on whether, where or when trial 6 was made.
"""

import hashlib

import numpy as np


def generator(seed: int, index: int, purpose: str) -> np.random.Generator:
    """A generator for one purpose ("faults", "items", ...) of one index (a trial number) under one seed.

    `seed` and `index` are taken modulo 2**64. Streams of different indices are 2**128 draws apart.
    """
    mask = 2**64 - 1
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    key = np.array([seed & mask, int.from_bytes(digest, "little")], dtype=np.uint64)
    counter = np.array([0, 0, index & mask, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
