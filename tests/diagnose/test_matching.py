"""What matching is made of: likeness, columns, names that repeat."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.layouts import Layout
from aftershock.diagnose.matching.columns import channels_of, directions, ranges_of
from aftershock.diagnose.matching.search import apart, tolerance_of
from aftershock.diagnose.matching.series import series_of
from aftershock.diagnose.sources import Place, Source
from aftershock.numerics import generator


def values(*shape: int, index: int = 0) -> torch.Tensor:
    return torch.from_numpy(generator(0, index, "values").standard_normal(shape)).float()


def test_equal_values_are_not_apart_and_others_are() -> None:
    own = values(20, 30)
    assert apart(own, own) == 0
    assert apart(own, values(20, 30, index=1)) > 0.5
    assert apart(own, own.bfloat16().float()) < tolerance_of(Arithmetic(torch.bfloat16)) / 4
    assert apart(own, own.bfloat16().float()) > tolerance_of(Arithmetic(torch.float32))


def test_an_error_in_a_few_values_keeps_them_together() -> None:
    own = values(20, 30)
    changed = own.clone()
    changed[7:9] = 100.0
    assert apart(own, changed) == 0
    assert apart(own, torch.full_like(own, torch.nan)) == 1
    assert apart(torch.full_like(own, torch.nan), torch.full_like(own, torch.nan)) == 1


def test_large_values_do_not_stand_for_all() -> None:
    own, other = values(20, 30), values(20, 30, index=1)
    own[:, 3] = other[:, 3] = 1e6
    assert apart(own, other) > 0.5


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_coarser_arithmetic_explains_more(kind: torch.dtype) -> None:
    own = tolerance_of(Arithmetic(kind))
    assert own <= tolerance_of(Arithmetic(kind, activation_bits=8))
    assert own <= tolerance_of(Arithmetic(kind, cache=torch.float16))


@given(st.permutations(range(6)), st.integers(1, 3), st.floats(0.1, 10), st.booleans())
def test_blocks_of_channels_are_found(order: list[int], step: int, factor: float, negative: bool) -> None:
    offered = values(12, 60)
    columns = [8 * block + step * place for block in order[:4] for place in range(8 // step)]
    wanted = offered[:, columns] * (-factor if negative else factor)
    found = channels_of(directions(wanted), directions(offered), 1e-4)
    assert found is not None
    assert [column for part in found for column in part] == columns


def test_a_few_columns_that_tell_nothing_are_filled_in() -> None:
    offered = values(12, 40)
    offered[:, [11, 12, 25]] = 0
    found = channels_of(directions(offered[:, 8:32]), directions(offered), 1e-4)
    assert found == (range(8, 32),)


def test_what_is_not_there_is_not_found() -> None:
    offered = values(12, 40)
    assert channels_of(directions(values(12, 16, index=1)), directions(offered), 1e-4) is None
    assert channels_of(directions(offered[:2, :16]), directions(offered[:2]), 1e-4) is None
    assert channels_of(directions(offered), directions(offered[:, :16]), 1e-4) is None
    scattered = torch.from_numpy(generator(0, 0, "order").permutation(40))
    assert channels_of(directions(offered[:, scattered]), directions(offered), 1e-4) is None


def test_ranges_keep_to_the_tensor() -> None:
    every = torch.ones(4, dtype=torch.bool)
    assert ranges_of(torch.tensor([4, 5, 6, 7]), every, 8) == (range(4, 8),)
    assert ranges_of(torch.tensor([4, 5, 6, 7]), torch.tensor([True, True, True, False]), 7) is None
    assert ranges_of(torch.tensor([3, 3, 3, 3]), every, 8) is None


def test_names_go_on_with_the_layer() -> None:
    places = [Place(f"h.{layer}.q.0") for layer in range(4)] + [Place(f"h.{layer + 1}.out") for layer in range(3)]
    layout = Layout((range(8),))
    series = series_of(places, 4).and_("q", 1, Source((Place("h.1.q.0"),), layout))
    series = series.and_("residual", 0, Source((Place("h.1.out"),)))
    assert series.foretold("q", 3) == Source((Place("h.3.q.0"),), layout)
    assert series.foretold("q", 1) == Source((Place("h.1.q.0"),), layout)
    assert series.foretold("q", 4) is None
    assert series.foretold("residual", 2) == Source((Place("h.3.out"),))
    assert series.foretold("residual", 3) is None
    assert series.foretold("k", 1) is None


def test_numbers_that_count_more_than_layers_tell_nothing() -> None:
    series = series_of([Place(f"node_{number}") for number in range(40)], 4)
    assert series.and_("q", 0, Source((Place("node_3"),))).foretold("q", 1) is None
