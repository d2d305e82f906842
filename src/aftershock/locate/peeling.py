"""Which words of a matrix changed, from what changed in the sums of its rows and columns.

The sums are those of a product code; a line with a single changed word gives it away, and taking it out of the sums
may leave another line with a single one: peeling, as erasure codes are decoded (Luby et al., IEEE Trans. Inf. Theory
47(2), 2001). What it finds for certain, and what not, is proved in docs/repair.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aftershock.detect import LineSums, multipliers
from aftershock.locate.changes import Ambiguous, WordChanges, word_changes
from aftershock.models import TensorWords

Gather = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The words at some rows and columns (int64, shape (n,)) as signed integers (int64, shape (n,))."""

MOST_SUSPECTS = 64
"""Pairs of changed words are looked for among no more places of a line than this."""

_AT_ONCE = 1 << 20
"""Pairs of words looked at in one go, which bounds the memory taken."""

_ONE = np.uint64(1)


def peel(differences: LineSums, tensor: TensorWords, gather: Gather) -> WordChanges | Ambiguous:
    """The changed words of a tensor from its sums now less its clean ones.

    `Ambiguous` names the rows and columns whose sums are left over where not all changes can be told. A wrong step is
    improbable and mostly comes to light in the sums of other lines (docs/repair.md bounds it); hold what comes out
    against a digest all the same.
    """
    peeling = _Peeling(differences, tensor, gather)
    while peeling.left() and (peeling.take_singles() or peeling.take_pairs()):
        pass
    if peeling.left():
        bad_rows, bad_columns = (tuple(map(int, np.flatnonzero(sums.any(1)))) for sums in peeling.sums)
        return Ambiguous(tensor, bad_rows, bad_columns, "its changed words share rows and columns in too many ways")
    places = peeling.places
    rows, columns = np.divmod(places, tensor.columns)
    return word_changes(tensor, rows, columns, peeling.found, peeling.found - peeling.deltas)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Words that may have changed: places along the axis looked at and across it, and the changes; int64, (n,)."""

    lines: np.ndarray
    crossings: np.ndarray
    deltas: np.ndarray


class _Peeling:
    """Sums of rows (axis 0) and of columns (axis 1), uint64 of shapes (rows, 2) and (columns, 2), from which the
    changes found so far are taken out."""

    def __init__(self, differences: LineSums, tensor: TensorWords, gather: Gather) -> None:
        self.tensor, self.gather = tensor, gather
        self.sums = tuple(sums.numpy().view(np.uint64).copy() for sums in (differences.rows, differences.columns))
        # A word is weighted in its row by its column's number, and the other way round.
        self.weights = tuple(multipliers(len(sums)).numpy().view(np.uint64) for sums in self.sums)
        self.bits = 8 * tensor.width
        self.places = self.found = self.deltas = np.empty(0, np.int64)

    def left(self) -> bool:
        return any(bool(sums.any()) for sums in self.sums)

    def take_singles(self) -> bool:
        """Take out the words that are the only changed ones of their row, then of their column."""
        return sum(self._take(axis, self._fitting(axis, self._singles(axis))) for axis in (0, 1)) > 0

    def take_pairs(self) -> bool:
        """Take out the words of the rows that have two changed ones, or of the columns: whichever has fewer places
        where they may be, and if it has none such, the other."""
        axes = sorted((0, 1), key=lambda axis: int(self.sums[1 - axis].any(1).sum()))
        return any(self._take(axis, self._pairs(axis)) for axis in axes)

    def _take(self, axis: int, candidates: _Candidates) -> int:
        """Keep candidates and take them out of the sums; returns how many.

        Their own lines' sums are zero after, and stay so: a line of zeros is no suspect, so no place is taken twice.
        """
        rows, columns = (candidates.lines, candidates.crossings)[:: 1 - 2 * axis]
        places = rows * self.tensor.columns + columns
        deltas = candidates.deltas.view(np.uint64)
        for own, lines, others in ((0, rows, columns), (1, columns, rows)):
            weighted = self.weights[1 - own][others] * deltas
            np.subtract.at(self.sums[own], lines, np.stack([deltas, weighted], axis=1))
        self.found = np.concatenate([self.found, self.gather(rows, columns)])
        self.places = np.concatenate([self.places, places])
        self.deltas = np.concatenate([self.deltas, candidates.deltas])
        return len(places)

    def _fits(self, axis: int, candidates: _Candidates) -> np.ndarray:
        """Which candidates (any shape) can be: a change of a word of the tensor that leaves a word of its width."""
        lines, crossings, deltas = np.broadcast_arrays(candidates.lines, candidates.crossings, candidates.deltas)
        rows, columns = (lines, crossings)[:: 1 - 2 * axis]
        places = rows * self.tensor.columns + columns
        fits: np.ndarray = (deltas != 0) & (deltas > -(1 << self.bits)) & (deltas < 1 << self.bits)
        fits &= places < self.tensor.filled
        clean = self.gather(rows[fits], columns[fits]) - deltas[fits]
        fits[fits] = (clean >= -(1 << self.bits - 1)) & (clean < 1 << self.bits - 1)
        return fits

    def _fitting(self, axis: int, candidates: _Candidates) -> _Candidates:
        fits = self._fits(axis, candidates)
        return _Candidates(candidates.lines[fits], candidates.crossings[fits], candidates.deltas[fits])

    def _singles(self, axis: int) -> _Candidates:
        """The line's plain sum is the change d, its weighted one m d: the one suspect crossing with that m."""
        lines = np.flatnonzero(self.sums[axis][:, 0])
        suspects = np.flatnonzero(self.sums[1 - axis].any(1))
        plain, weighted = self.sums[axis][lines].T
        twos = _twos(plain)
        crossings = np.full(len(lines), -1)
        for shift in np.unique(twos):
            # Of m d modulo 2^64 with d = 2^shift x odd, m is known modulo 2^(64 - shift).
            mask = np.uint64(2 ** (64 - int(shift)) - 1)
            keys = self.weights[1 - axis][suspects] & mask
            order = np.argsort(keys)
            alike = np.flatnonzero(twos == shift)
            wanted = (weighted[alike] >> shift) * _inverse(plain[alike] >> shift) & mask
            first = np.searchsorted(keys[order], wanted)
            one = np.searchsorted(keys[order], wanted, side="right") - first == 1
            one &= weighted[alike] & ((_ONE << shift) - _ONE) == 0
            crossings[alike[one]] = suspects[order[first[one]]]
        kept = crossings >= 0
        return _Candidates(lines[kept], crossings[kept], plain[kept].view(np.int64))

    def _pairs(self, axis: int) -> _Candidates:
        """Two changes in a line solve a + b = plain, m_a a + m_b b = weighted: (m_a - m_b) a = weighted - m_b plain."""
        lines = np.flatnonzero(self.sums[axis].any(1))
        suspects = np.flatnonzero(self.sums[1 - axis].any(1))
        none = _Candidates(*(np.empty(0, np.int64),) * 3)
        if not 2 <= len(suspects) <= MOST_SUSPECTS:
            return none
        one, other = (suspects[index] for index in np.triu_indices(len(suspects), 1))
        step = max(1, _AT_ONCE // len(one))
        parts = [self._pairs_of(axis, lines[at : at + step], one, other) for at in range(0, len(lines), step)]
        fields = zip(*((part.lines, part.crossings, part.deltas) for part in (none, *parts)), strict=True)
        return _Candidates(*(np.concatenate(field) for field in fields))

    def _pairs_of(self, axis: int, lines: np.ndarray, one: np.ndarray, other: np.ndarray) -> _Candidates:
        """The lines for which exactly one pair of crossings, of those in `one` and `other`, fits."""
        weights = self.weights[1 - axis]
        plain, weighted = (column[:, None] for column in self.sums[axis][lines].T)
        apart = weights[one] - weights[other]
        twos = _twos(apart)
        right = weighted - weights[other] * plain
        # Known modulo 2^(64 - twos): the change itself where its bits and a sign are no more than that.
        solved = (right >> twos) * _inverse(apart >> twos) << twos
        first = solved.view(np.int64) >> twos.view(np.int64)
        second = plain.view(np.int64) - first
        fits = (right & ((_ONE << twos) - _ONE) == 0) & (twos.view(np.int64) < 64 - self.bits)
        for crossings, deltas in ((one, first), (other, second)):
            pair = np.nonzero(fits)
            fits[pair] = self._fits(axis, _Candidates(lines[pair[0]], crossings[pair[1]], deltas[pair]))
        line, pairs = np.nonzero(fits & (fits.sum(1, keepdims=True) == 1))
        return _Candidates(
            np.repeat(lines[line], 2),
            np.stack([one[pairs], other[pairs]], axis=1).reshape(-1),
            np.stack([first[line, pairs], second[line, pairs]], axis=1).reshape(-1),
        )


def _twos(numbers: np.ndarray) -> np.ndarray:
    """How often two divides each number, uint64; 63 for zero."""
    lowest = numbers & (~numbers + _ONE)
    twos: np.ndarray = np.minimum(np.bitwise_count(lowest - _ONE), 63).astype(np.uint64)
    return twos


def _inverse(odd: np.ndarray) -> np.ndarray:
    """Inverses modulo 2^64 of odd numbers, uint64, by Newton's iteration; each step doubles the bits that are right."""
    found = odd.copy()  # right to three bits
    for _ in range(5):
        found *= np.uint64(2) - odd * found
    return found
