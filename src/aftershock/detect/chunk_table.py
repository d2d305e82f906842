"""How tensors' bytes lie in chunks of rows and lanes, for checksums.

A stuck column or data line sets a bit b of every p-th word of 64 bits. A checksum can't see it where that adds up to a
multiple of 2^64 in all lanes: with 128 rows of 1024 lanes for b = 63 and most p that are powers of two, since those
strike each lane an even number of times.

With 127 rows of 1016 = 8 x 127 lanes no full chunk hides it, for any p but multiples of 127. Words of a lane are 1016
apart, so that every t-th of them is struck, t = p / gcd(p, 1016), or none. Where t > 127 that is one at most. Otherwise
it is the whole part of 127 / t or one more: 127 for t = 1; else both are found, and one of them is odd, because
p <= 1016, so that among the lanes struck the first stroke falls on each of the first t words. An odd number times 2^b
is not 0 modulo 2^64.

Words of one line of 64 bytes lie in lanes of their own, and so do those of a column of a matrix with rows of 8 KiB.
"""

from collections.abc import Sequence

import numpy as np

ROWS, LANES = 127, 1016
CHUNK = ROWS * LANES * 8
"""Bytes of a chunk."""


def chunk_table(sizes: Sequence[int]) -> np.ndarray:
    """All chunks of tensors of so many bytes, tensor by tensor: int64, shape (chunks, 3). Of each the number of its
    tensor, its number in that tensor, and its bytes, of which the last chunk of a tensor may have fewer than `CHUNK`.
    """
    lengths = np.array(sizes, np.int64)
    counts = -(-lengths // CHUNK)
    owners = np.repeat(np.arange(len(sizes)), counts)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([owners, places, np.minimum(lengths[owners] - places * CHUNK, CHUNK)], 1)
