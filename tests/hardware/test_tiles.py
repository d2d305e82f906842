"""Products with faults, tile by tile, against plain arithmetic of whole numbers."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.hardware import (
    AccumulatorFaults,
    CriticalRegion,
    Dataflow,
    Gemm,
    SystolicArray,
    draw_faults,
    multiply,
    no_faults,
)
from aftershock.numerics import generator

Matrix = npt.NDArray[np.int8]
dataflows: tuple[Dataflow, ...] = ("weight-stationary", "output-stationary")
arrays = st.builds(SystolicArray, st.sampled_from(dataflows), st.integers(1, 6), st.integers(1, 6))
gemms = st.builds(Gemm, st.integers(1, 13), st.integers(1, 13), st.integers(1, 13))
seeds = st.integers(0, 1000)


def operands(gemm: Gemm, seed: int) -> tuple[Matrix, Matrix]:
    random = generator(seed, 0, "operands")
    shapes = (gemm.outputs, gemm.depth), (gemm.depth, gemm.tokens)
    weight, inputs = (random.integers(-128, 128, shape, dtype=np.int8) for shape in shapes)
    return weight, inputs


def flips(places: list[int], masks: list[int]) -> AccumulatorFaults:
    return AccumulatorFaults(np.array(places, dtype=np.int64), np.array(masks, dtype=np.uint32))


@given(arrays, gemms, seeds)
def test_without_faults_the_product_is_exact_and_no_tile_alarms(array: SystolicArray, gemm: Gemm, seed: int) -> None:
    weight, inputs = operands(gemm, seed)
    found = multiply(array, weight, inputs, no_faults())
    assert found.outputs.dtype == np.int32
    assert (found.outputs == weight.astype(np.int64) @ inputs.astype(np.int64)).all()
    assert found.tiles.differences.shape == (array.tiles(gemm), array.tile_tokens)
    assert not found.tiles.alarms.any()
    assert not found.tiles.corrupted.any()


@pytest.mark.parametrize("dataflow", dataflows)
def test_sums_that_do_not_fit_wrap_and_still_do_not_alarm(dataflow: Dataflow) -> None:
    weight, inputs = np.full((256, 1100), -128, dtype=np.int8), np.full((1100, 3), -128, dtype=np.int8)
    # A column of the checksum is 256 x 1100 x 2^14, more than 2^32.
    found = multiply(SystolicArray(dataflow), weight, inputs, no_faults())
    assert (found.outputs == 1100 * 2**14).all()
    assert not found.tiles.alarms.any()


@given(arrays, gemms, seeds, st.data())
def test_one_error_alarms_its_tile_alone_at_its_column_by_its_size(
    array: SystolicArray, gemm: Gemm, seed: int, data: st.DataObject
) -> None:
    weight, inputs = operands(gemm, seed)
    shape = (array.passes(gemm), gemm.outputs, gemm.tokens)
    place = data.draw(st.integers(0, int(np.prod(shape)) - 1))
    struck = multiply(array, weight, inputs, flips([place], [data.draw(st.integers(1, 2**32 - 1))]))
    clean = multiply(array, weight, inputs, no_faults())

    number, output, token = np.unravel_index(place, shape)
    changed = (struck.outputs.astype(np.int64) - clean.outputs).astype(np.int32)
    assert np.argwhere(changed).tolist() == [[output, token]]
    (tile,) = np.flatnonzero(struck.tiles.alarms)
    assert np.flatnonzero(struck.tiles.corrupted).tolist() == [tile]
    blocks = -(-gemm.outputs // array.tile_outputs), -(-gemm.tokens // array.tile_tokens)
    expected = (number * blocks[0] + output // array.tile_outputs) * blocks[1] + token // array.tile_tokens
    assert tile == expected
    assert np.flatnonzero(struck.tiles.differences[tile]).tolist() == [token % array.tile_tokens]
    assert np.flatnonzero(struck.differences).tolist() == [token]
    assert np.int64(struck.differences[token]).astype(np.int32) == np.int64(-np.int64(changed[output, token])).astype(
        np.int32
    )


@given(arrays, gemms, seeds, st.floats(0, 0.3))
def test_checksums_are_linear(array: SystolicArray, gemm: Gemm, seed: int, rate: float) -> None:
    """The differences of any faults are what the outputs of each column lost in sum, modulo 2^32."""
    weight, inputs = operands(gemm, seed)
    struck = multiply(array, weight, inputs, draw_faults(array, gemm, rate, seed, 0))
    clean = multiply(array, weight, inputs, no_faults())
    lost = (clean.outputs.astype(np.int64) - struck.outputs).sum(axis=0)
    assert ((struck.differences - lost) % 2**32 == 0).all()
    assert (struck.tiles.corrupted | ~struck.tiles.alarms).all()


@given(arrays, st.integers(1, 13), st.integers(1, 13), seeds, st.floats(0, 1))
def test_where_each_error_has_a_column_of_its_own_none_is_lost(
    array: SystolicArray, depth: int, tokens: int, seed: int, rate: float
) -> None:
    gemm = Gemm(1, depth, tokens)
    faults = draw_faults(array, gemm, rate, seed, 0)
    tiles = multiply(array, *operands(gemm, seed), faults).tiles
    assert np.count_nonzero(tiles.differences) == faults.place.size
    assert CriticalRegion(a=2.0, b=-100.0).effective_frequency(tiles.differences).sum() == faults.place.size


def test_errors_of_one_column_that_cancel_corrupt_without_an_alarm() -> None:
    array, gemm = SystolicArray("output-stationary", 4, 4), Gemm(4, 4, 4)
    weight, inputs = operands(gemm, 0)
    found = multiply(array, weight, inputs, flips([1, 5], [2**31, 2**31]))
    assert found.tiles.corrupted.tolist() == [True]
    assert found.tiles.alarms.tolist() == [False]


@given(arrays, gemms, seeds, st.sampled_from(("element", "bit")))
def test_at_rate_one_everything_is_struck(array: SystolicArray, gemm: Gemm, seed: int, unit: str) -> None:
    faults = draw_faults(array, gemm, 1.0, seed, 0, "bit" if unit == "bit" else "element", bits=(3, 30))
    assert faults.place.tolist() == list(range(array.passes(gemm) * gemm.outputs * gemm.tokens))
    both = 2**3 + 2**30
    assert set(faults.mask.tolist()) <= ({both} if unit == "bit" else {2**3, 2**30})


def test_faults_are_a_function_of_seed_and_index() -> None:
    array, gemm = SystolicArray("output-stationary"), Gemm(100, 10, 100)
    first, again, other = (draw_faults(array, gemm, 0.01, 7, index) for index in (0, 0, 1))
    assert (first.place == again.place).all()
    assert (first.mask == again.mask).all()
    assert not np.array_equal(first.place, other.place)


def test_rates_come_out_in_their_unit() -> None:
    array, gemm = SystolicArray("output-stationary"), Gemm(1000, 1, 1000)
    elements = draw_faults(array, gemm, 1e-3, 0, 0)
    assert elements.place.size == pytest.approx(1000, abs=5 * np.sqrt(1000))
    assert np.bitwise_count(elements.mask).max() == 1
    bits = draw_faults(array, gemm, 1e-3, 0, 0, "bit")
    assert int(np.bitwise_count(bits.mask).sum()) == pytest.approx(32_000, abs=5 * np.sqrt(32_000))


def test_bits_are_those_asked_for_and_all_of_them() -> None:
    faults = draw_faults(SystolicArray("output-stationary"), Gemm(40, 1, 40), 0.5, 0, 0, bits=(30, 22))
    assert set(faults.mask.tolist()) == {2**22, 2**30}


@pytest.mark.parametrize("bits", [(), (32,), (-1,), (3, 3)])
def test_bits_that_are_none_are_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="bits of an accumulator"):
        draw_faults(SystolicArray("output-stationary"), Gemm(2, 2, 2), 0.1, 0, 0, bits=bits)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_chance_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="no chance"):
        draw_faults(SystolicArray("output-stationary"), Gemm(2, 2, 2), rate, 0, 0)


def test_operands_and_faults_that_do_not_fit_are_refused() -> None:
    array = SystolicArray("output-stationary")
    weight, inputs = operands(Gemm(2, 3, 4), 0)
    with pytest.raises(InputError, match="int8"):
        multiply(array, weight, inputs.astype(np.int32), no_faults())
    with pytest.raises(InputError, match="depth"):
        multiply(array, weight, inputs.T, no_faults())
    for place in (-1, 8):
        with pytest.raises(InputError, match="outside"):
            multiply(array, weight, inputs, flips([place], [1]))
    with pytest.raises(InputError, match="no place twice"):
        flips([1, 1], [1, 2])
