"""Shapes of arrays: tiles, cycles, what checksums add."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.hardware import Dataflow, Gemm, SystolicArray

sizes = st.integers(1, 700)
gemms = st.builds(Gemm, sizes, sizes, sizes)
dataflows: tuple[Dataflow, ...] = ("weight-stationary", "output-stationary")
arrays = st.builds(SystolicArray, st.sampled_from(dataflows), st.integers(1, 300), st.integers(1, 300))


def test_tiles_of_a_product_on_the_published_array() -> None:
    gemm = Gemm(outputs=1536, depth=576, tokens=600)
    assert SystolicArray("weight-stationary").tiles(gemm) == 6 * 3 * 3
    assert SystolicArray("output-stationary").tiles(gemm) == 6 * 3
    assert SystolicArray("weight-stationary").passes(gemm) == 3
    assert SystolicArray("output-stationary").passes(gemm) == 1


def test_cycles_of_one_tile_by_following_its_waves() -> None:
    """Weights take `rows` steps in; token t's last result leaves after rows + columns - 1 steps from its start at t."""
    rows, columns, tokens = 4, 3, 5
    last = max(t + r + c for t in range(tokens) for r in range(rows) for c in range(columns)) + 1
    assert SystolicArray("weight-stationary", rows, columns).cycles(Gemm(columns, rows, tokens)).total == rows + last
    depth = 7
    last = max(k + r + c for k in range(depth) for r in range(rows) for c in range(columns)) + 1
    assert SystolicArray("output-stationary", rows, columns).cycles(Gemm(rows, depth, columns)).total == last + rows


@given(arrays, gemms)
def test_the_array_never_does_more_than_its_elements_can(array: SystolicArray, gemm: Gemm) -> None:
    cycles = array.cycles(gemm)
    assert cycles.total == cycles.fill + cycles.stream + cycles.drain
    assert cycles.stream * array.rows * array.columns >= gemm.multiplications


@given(arrays, gemms)
def test_checksums_cost_a_few_cycles_for_each_tile_and_never_the_stream(array: SystolicArray, gemm: Gemm) -> None:
    plain, checked = array.cycles(gemm), array.checked_cycles(gemm)
    assert checked.stream == plain.stream
    weight_stationary = array.dataflow == "weight-stationary"
    held = plain.stream // (gemm.tokens if weight_stationary else gemm.depth)
    assert checked.total - plain.total == held * (2 if weight_stationary else 3)


def test_checksum_elements_are_one_line_of_the_array() -> None:
    assert SystolicArray("weight-stationary", 4, 8).checksum_elements() == 4 / 32
    assert SystolicArray("output-stationary", 4, 8).checksum_elements() == 8 / 32


@given(arrays, gemms)
def test_tiles_cover_every_accumulator(array: SystolicArray, gemm: Gemm) -> None:
    capacity = array.tiles(gemm) * array.tile_outputs * array.tile_tokens
    assert capacity >= array.passes(gemm) * gemm.outputs * gemm.tokens
    assert np.gcd.reduce([array.tiles(gemm), array.passes(gemm)]) == array.passes(gemm)


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="empty"):
        Gemm(4, size, 4)
    with pytest.raises(InputError, match="empty"):
        SystolicArray("weight-stationary", rows=size)
