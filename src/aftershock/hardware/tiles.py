"""Products on a systolic array tile by tile: int32 accumulators, faults in them, what the checksums say.

All arithmetic is exact modulo 2^32, checksums included, so a clean tile never alarms. Faults strike what tiles
hand over: weight-stationary, every partial sum that leaves the array; output-stationary, every finished accumulator.
Operands stay intact, as in ReaLM's error model, and so does the checksum hardware, which is our simplification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.hardware.systolic import Gemm, SystolicArray
from aftershock.hardware.voltage import ACCUMULATOR_BITS, RateUnit
from aftershock.numerics import generator

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AccumulatorFaults:
    """XOR masks of accumulators. `place`: int64, shape (faults,), flat indices into (passes, outputs, tokens), none
    twice; `mask`: uint32, shape (faults,)."""

    place: Integers
    mask: npt.NDArray[np.uint32]

    def __post_init__(self) -> None:
        if self.place.shape != self.mask.shape or np.unique(self.place).size != self.place.size:
            raise InputError("faults in accumulators need one mask for each place, and no place twice")


@dataclass(frozen=True, eq=False)
class TileErrors:
    """What became of tiles: `differences`, int64, shape (tiles, tile_tokens), is d = e^T W X - e^T Y of every column,
    as a signed 32-bit number (0 where a tile at the edge has no column); `corrupted`, bool, shape (tiles,), says where
    an accumulator is wrong. The two disagree only where errors of a column cancel modulo 2^32."""

    differences: Integers
    corrupted: Booleans

    @property
    def alarms(self) -> Booleans:
        """Tiles with any difference, shape (tiles,)."""
        return np.asarray(self.differences.any(axis=1))


@dataclass(frozen=True, eq=False)
class Product:
    """`outputs`: int32, shape (outputs, tokens), faults included; `tiles` in the order (pass, outputs, tokens), the
    last fastest; `differences`: those of the whole product, int64, shape (tokens,): sums of its tiles'."""

    outputs: npt.NDArray[np.int32]
    tiles: TileErrors
    differences: Integers


def no_faults() -> AccumulatorFaults:
    """Nothing struck."""
    return AccumulatorFaults(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint32))


def draw_faults(
    array: SystolicArray,
    gemm: Gemm,
    rate: float,
    seed: int,
    index: int,
    unit: RateUnit = "element",
    bits: Sequence[int] = range(ACCUMULATOR_BITS),
) -> AccumulatorFaults:
    """Faults at a rate, a function of (seed, index). `unit` "element": each accumulator is struck with chance `rate`
    in one of `bits`, all alike; "bit": each of `bits` of each accumulator flips with chance `rate`.

    Raises InputError for a rate outside 0 to 1, or a bit outside 0 to 31 or given twice.
    """
    allowed = np.array(sorted(set(bits)), dtype=np.int64)
    if not 0 <= rate <= 1:
        raise InputError(f"a rate of {rate} is no chance: give one from 0 to 1")
    if not 0 < len(bits) == allowed.size or allowed[0] < 0 or allowed[-1] >= ACCUMULATOR_BITS:
        raise InputError(f"bits {list(bits)} are not different bits of an accumulator: give some from 0 to 31")
    random = generator(seed, index, "accumulator faults")
    accumulators = array.passes(gemm) * gemm.outputs * gemm.tokens
    choices = accumulators * (1 if unit == "element" else allowed.size)
    chosen = random.choice(choices, random.binomial(choices, rate), replace=False)
    if unit == "element":
        flipped, place = random.choice(allowed, chosen.size), chosen
    else:
        flipped, place = allowed[chosen % allowed.size], chosen // allowed.size
    struck, which = np.unique(place, return_inverse=True)
    mask = np.zeros(struck.size, dtype=np.uint32)
    np.bitwise_xor.at(mask, which, np.left_shift(np.uint32(1), flipped.astype(np.uint32)))
    return AccumulatorFaults(struck.astype(np.int64), mask)


def multiply(
    array: SystolicArray, weight: npt.NDArray[np.int8], inputs: npt.NDArray[np.int8], faults: AccumulatorFaults
) -> Product:
    """weight @ inputs on the array; int8, shapes (outputs, depth) and (depth, tokens).

    Raises InputError for other dtypes or shapes, and for faults outside the product's accumulators.
    """
    if weight.dtype != np.int8 or inputs.dtype != np.int8 or weight.ndim != 2 or inputs.ndim != 2:
        raise InputError("the array multiplies matrices of int8: give weight and inputs in two dimensions as int8")
    if weight.shape[1] != inputs.shape[0]:
        raise InputError(f"weight has depth {weight.shape[1]}, inputs have {inputs.shape[0]}: give them the same")
    gemm = Gemm(weight.shape[0], weight.shape[1], inputs.shape[1])
    passes = array.passes(gemm)
    masks = np.zeros(passes * gemm.outputs * gemm.tokens, dtype=np.uint32)
    if faults.place.size and not 0 <= faults.place.min() <= faults.place.max() < masks.size:
        raise InputError(
            f"the product has {masks.size} accumulators and a fault lies outside: draw faults for its shape"
        )
    masks[faults.place] = faults.mask
    outputs = np.zeros((gemm.outputs, gemm.tokens), dtype=np.int64)
    differences, corrupted = [], []
    depth = array.rows if passes > 1 else gemm.depth
    for number, struck in enumerate(masks.reshape(passes, gemm.outputs, gemm.tokens).view(np.int32)):
        part = slice(number * depth, (number + 1) * depth)
        partial = _wrapped(_exact(weight[:, part], inputs[part])) ^ struck
        outputs += partial
        for begin in range(0, gemm.outputs, array.tile_outputs):
            rows = slice(begin, begin + array.tile_outputs)
            checksum = weight[rows, part].sum(axis=0, dtype=np.int64)
            expected = _exact(checksum[None], inputs[part])[0]
            differences.append(_wrapped(expected - partial[rows].sum(axis=0, dtype=np.int64)).astype(np.int64))
            corrupted.append(struck[rows].any(axis=0))
    deviations = _by_tile(np.array(differences), array.tile_tokens)
    wrong = np.asarray(_by_tile(np.array(corrupted, dtype=np.int64), array.tile_tokens).any(axis=1))
    return Product(_wrapped(outputs), TileErrors(deviations, wrong), np.sum(differences, axis=0))


def _exact(left: npt.NDArray[np.signedinteger], right: npt.NDArray[np.int8]) -> Integers:
    """A product of whole numbers. In float64, which BLAS is fast in, sums stay far below 2^53."""
    return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)


def _wrapped(values: Integers) -> npt.NDArray[np.int32]:
    """Modulo 2^32, as signed."""
    return values.astype(np.int32)


def _by_tile(values: Integers, width: int) -> Integers:
    """From (blocks, tokens) to (tiles, width), zeros added to the last tile of every block."""
    missing = -values.shape[1] % width
    return np.pad(values, ((0, 0), (0, missing))).reshape(-1, width)
