"""Which 16-bit words of a tensor's blocks changed, from what changed in their syndromes.

The power sums of the changes are those of a Reed-Solomon code over GF(p) with p = 2^31 - 1. Decoding is Peterson's in
the classical steps: the locator polynomial by Berlekamp and Massey (Massey, IEEE Trans. Inf. Theory 15(1), 1969), its
roots by trying every place, the changes by Forney's formula (IEEE Trans. Inf. Theory 11(4), 1965).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aftershock.detect import PRIME, Syndromes, blocks_of
from aftershock.locate.changes import Ambiguous, WordChanges, word_changes
from aftershock.locate.peeling import Gather
from aftershock.models import TensorWords

_LARGEST = (1 << 16) - 1
"""No 16-bit word changes by more."""


@dataclass(frozen=True, eq=False)
class _Halves:
    """Changed 16-bit words of a tensor: their numbers, and by how much each is more than it should be; int64, (n,)."""

    places: np.ndarray
    deltas: np.ndarray


def decode(now: Syndromes, clean: Syndromes, tensor: TensorWords, gather: Gather) -> WordChanges | Ambiguous:
    """The changed words of a tensor from its syndromes as they are and as they should be.

    Each block of up to t changed 16-bit words (`correctable`) is decoded. `Ambiguous` names the rows of the blocks that
    have more. A wrong answer has a chance below 2^-27 t a block (docs/repair.md), so hold what comes out against a
    digest.
    """
    differences = (now.values.long() - clean.values.long()).numpy() % PRIME
    borders = [int(border) for border in blocks_of(tensor)]
    solved = [_Halves(np.empty(0, np.int64), np.empty(0, np.int64))]
    unsolved = []
    for block in np.flatnonzero(differences.any(1)):
        first, end = borders[block : block + 2]
        errors = solve([int(value) for value in differences[block]], end - first)
        if errors is None:
            unsolved.append((first, end))
        else:
            solved.append(_Halves(errors.places + first, errors.deltas))
    found = _Halves(*(np.concatenate([getattr(one, field) for one in solved]) for field in ("places", "deltas")))
    changes = None if unsolved else _as_words(found, tensor, gather)
    if changes is None:
        return _ambiguous(unsolved or [(int(place), int(place) + 1) for place in found.places], tensor)
    return changes


def _ambiguous(spans: Sequence[tuple[int, int]], tensor: TensorWords) -> Ambiguous:
    """Somewhere in these spans of 16-bit words."""
    rows: set[int] = set()
    for first, end in spans:
        last = min(2 * end, tensor.size) - 1
        rows.update(range(2 * first // tensor.row_bytes, last // tensor.row_bytes + 1))
    return Ambiguous(tensor, tuple(sorted(rows)), (), "more words of a block changed than its syndromes can tell")


def _as_words(found: _Halves, tensor: TensorWords, gather: Gather) -> WordChanges | None:
    """The changes as words of the tensor's own width, by way of bytes; None where they can't be."""
    bytes_of = 2 * found.places[:, None] + np.arange(2)
    places, inverse = np.unique(bytes_of // tensor.width, return_inverse=True)
    inverse = inverse.reshape(bytes_of.shape)
    held = np.zeros(len(places), np.int64)
    own = places < tensor.filled
    held[own] = gather(*np.divmod(places[own], tensor.columns)) & ((1 << 8 * tensor.width) - 1)
    shifts = 8 * (bytes_of % tensor.width)
    now = held[inverse] >> shifts & 255
    clean = now @ np.array([1, 256]) - found.deltas
    if np.any((clean < 0) | (clean > _LARGEST)):
        return None
    then = clean[:, None] >> np.array([0, 8]) & 255
    if np.any(then[bytes_of >= tensor.size]):
        return None  # what fills up the last 16-bit word is zero
    mended = held.copy()
    np.subtract.at(mended, inverse, now - then << shifts)
    changed = mended != held
    rows, columns = np.divmod(places[changed], tensor.columns)
    return word_changes(tensor, rows, columns, held[changed], mended[changed])


def solve(syndromes: Sequence[int], length: int) -> _Halves | None:
    """Places (from 0) and changes of the wrong words of a block of `length`, from its 2 t syndromes in [0, p).

    None where no t or fewer changes of 16-bit words explain all of them.
    """
    locator = _locator(syndromes)
    degree = len(locator) - 1
    if not 0 < degree <= len(syndromes) // 2:
        return None
    places = _roots(locator, length)
    if len(places) != degree:
        return None
    numbers = [int(place) + 1 for place in places]
    # They make the first syndromes, and so all: both follow the recurrence. None is 0, or a shorter one would do.
    errors = _magnitudes(syndromes, locator, numbers)
    deltas = np.array([error if error <= _LARGEST else error - PRIME for error in errors])
    return None if np.any(deltas < -_LARGEST) else _Halves(places, deltas)


def _locator(syndromes: Sequence[int]) -> list[int]:
    """Coefficients, lowest first, of the shortest recurrence that makes the syndromes: the product of (1 - x z) over
    the numbers x of wrong words."""
    current, previous = [1], [1]
    length, since, divisor = 0, 1, 1
    for index, syndrome in enumerate(syndromes):
        pairs = zip(current[1:], reversed(syndromes[:index]), strict=False)
        discrepancy = (syndrome + sum(coefficient * past for coefficient, past in pairs)) % PRIME
        if discrepancy:
            factor = discrepancy * pow(divisor, -1, PRIME) % PRIME
            shifted = [0] * since + [factor * coefficient for coefficient in previous]
            size = max(len(current), len(shifted))
            padded = current + [0] * (size - len(current))
            changed = [
                (one - other) % PRIME for one, other in zip(padded, shifted + [0] * (size - len(shifted)), strict=True)
            ]
            if 2 * length <= index:
                length, previous, divisor, since = index + 1 - length, current, discrepancy, 0
            current = changed
        since += 1
    while len(current) > 1 and current[-1] == 0:
        current.pop()
    # A recurrence longer than its polynomial has a root at no word.
    return current if len(current) == length + 1 else []


def _roots(locator: Sequence[int], length: int) -> np.ndarray:
    """Places j at whose number x = j + 1 the reversed polynomial, the product of (z - x), is zero; by Horner's rule."""
    numbers = np.arange(1, length + 1)
    values = np.zeros(length, np.int64)
    for coefficient in locator:
        values = (values * numbers + coefficient) % PRIME
    return np.flatnonzero(values == 0)


def _magnitudes(syndromes: Sequence[int], locator: Sequence[int], numbers: Sequence[int]) -> list[int]:
    """The change of each word: -x omega(1/x) / locator'(1/x), with omega = syndromes x locator mod z^degree."""
    degree = len(numbers)
    omega = [
        sum(locator[other] * syndromes[index - other] for other in range(index + 1)) % PRIME for index in range(degree)
    ]
    slope = [index * coefficient % PRIME for index, coefficient in enumerate(locator)][1:]
    found = []
    for number in numbers:
        inverse = pow(number, -1, PRIME)
        top, bottom = (sum(c * pow(inverse, k, PRIME) for k, c in enumerate(terms)) for terms in (omega, slope))
        found.append(-number * top * pow(bottom, -1, PRIME) % PRIME)
    return found
