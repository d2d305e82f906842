"""Patterns: every placement inside the tensor, each as likely, the values where the name says; and the catalogue."""

from collections import Counter
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import chisquare

from aftershock.errors import InputError
from aftershock.faults import (
    CATALOGUE,
    ActivationSite,
    CachedSite,
    Fault,
    Flip,
    Selection,
    StuckAt,
    WeightSite,
    check,
    sample_faults,
    select,
)
from aftershock.faults.patterns import PatternName, pattern_of
from aftershock.models import ComponentMap
from aftershock.numerics import format_of
from tiny_models import tiny_loaded

FP16 = format_of("float16")
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def llama() -> ComponentMap:
    return tiny_loaded("llama").components


def draw(model: ComponentMap, count: int, **keys: Any) -> list[tuple[Fault, ...]]:
    selection = Selection(**keys)
    population = select(selection, model)
    drawn = [sample_faults(selection, population, FP16, 6, 11, index) for index in range(count)]
    for faults in drawn:
        for fault in faults:
            check(fault, model, FP16)
    return drawn


@given(
    st.sampled_from(["word", "row", "column", "block", "stride"]),
    st.integers(1, 4) | st.just("all"),
    st.integers(1, 3),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
)
@example("stride", "all", 3, [4, 2])
def test_placements_are_all_those_inside_the_tensor(
    name: PatternName, span: int | Literal["all"], stride: int, shape: list[int]
) -> None:
    pattern = pattern_of(name, span, stride)
    found = [tuple(pattern.struck(tuple(shape), n).tolist()) for n in range(pattern.placements(tuple(shape)))]
    assert len(set(found)) == len(found)
    rows, columns = ([1, 1, *shape][-2], shape[-1])
    tall = {"column": span, "block": span}.get(name, 1)
    wide = {"row": span, "block": span, "stride": span}.get(name, 1)
    step = stride if name == "stride" else 1
    height = rows if tall == "all" else int(tall)
    lefts = range(min(step, columns)) if wide == "all" else range(columns - (int(wide) - 1) * step)
    width = columns if wide == "all" else int(wide)
    cells = np.arange(np.prod(shape)).reshape(-1, rows, columns)
    expected = {
        tuple(matrix[top : top + height, left : left + (width - 1) * step + 1 : step].ravel().tolist())
        for matrix in cells
        for top in range(rows - height + 1)
        for left in lefts
    }
    assert set(found) == expected


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"pattern": "row", "span": 3}, [(0, 1), (0, 2)]),
        ({"pattern": "column", "span": 3}, [(1, 0), (2, 0)]),
        ({"pattern": "block", "span": 2}, [(0, 1), (1, 0), (1, 1)]),
        ({"pattern": "stride", "span": 3, "stride": 4}, [(0, 4), (0, 8)]),
    ],
)
def test_weights_struck_together_lie_as_the_pattern_says(
    llama: ComponentMap, keys: dict[str, Any], steps: list[tuple[int, int]]
) -> None:
    for faults in draw(llama, 30, sites=["weight"], components=["up", "down"], **keys):
        sites = [fault.site for fault in faults]
        assert all(isinstance(site, WeightSite) and site.parameter == sites[0].parameter for site in sites)
        (row, column), *others = [site.index for site in sites]
        assert [(r - row, c - column) for r, c in others] == steps
        assert len({fault.trigger for fault in faults}) == 1


def test_every_placement_is_as_likely(llama: ComponentMap) -> None:
    found = Counter(
        faults[0].site.index[1]
        for faults in draw(llama, 3000, sites=["weight"], modules=UP, draw="uniform", pattern="row", span=8)
    )
    assert set(found) == set(range(32 - 7))
    assert chisquare(list(found.values())).pvalue > 1e-3


def test_a_pattern_strikes_one_token_and_in_the_cache_one_entry(llama: ComponentMap) -> None:
    for faults in draw(llama, 30, sites=["activation"], pattern="row", span=4):
        assert all(isinstance(fault.site, ActivationSite) for fault in faults)
        assert len({(fault.site.module, fault.trigger) for fault in faults}) == 1
        channels = [fault.site.channel for fault in faults]
        assert channels == list(range(channels[0], channels[0] + 4))
    for faults in draw(llama, 30, sites=["key", "value"], pattern="block", span=2):
        assert all(isinstance(fault.site, CachedSite) for fault in faults)
        assert len({(fault.site.part, fault.site.module, fault.site.entry, fault.trigger) for fault in faults}) == 1
        heads, channels = {fault.site.head for fault in faults}, {fault.site.channel for fault in faults}
        assert (len(heads), len(channels)) == (2, 2)


def test_flips_are_drawn_for_each_value_and_a_stuck_wire_is_one(llama: ComponentMap) -> None:
    flips = [{fault.corruption for fault in faults} for faults in draw(llama, 20, pattern="row", span=8)]
    assert max(map(len, flips)) > 4
    stuck = draw(llama, 20, pattern="row", span=8, corruption="stuck-at-1")
    assert all(len({fault.corruption for fault in faults}) == 1 for faults in stuck)
    assert len({faults[0].corruption for faults in stuck}) > 4
    assert all(isinstance(faults[0].corruption, StuckAt) for faults in stuck)


def test_adjacent_bits_are_neighbours_and_every_pair_is_as_likely(llama: ComponentMap) -> None:
    found = Counter(
        faults[0].corruption.bits
        for faults in draw(llama, 2000, bits_per_word=2, bit_pattern="adjacent", bits=[0, 1, 2, 9, 10, 14])
        if isinstance(faults[0].corruption, Flip)
    )
    assert set(found) == {(0, 1), (1, 2), (9, 10)}
    assert chisquare(list(found.values())).pvalue > 1e-3
    with pytest.raises(InputError, match="no 2 adjacent bits are selected"):
        draw(llama, 1, bits_per_word=2, bit_pattern="adjacent", bits=[0, 2])


def test_a_pattern_that_fits_nowhere_is_refused(llama: ComponentMap) -> None:
    with pytest.raises(InputError, match=r"pattern column, span 9000\) leaves no weight"):
        draw(llama, 1, sites=["weight"], pattern="column", span=9000)
    # A norm is one row.
    population = select(Selection(sites=["weight"], pattern="column", span=2), llama)
    assert "norm" not in {site.component for site in population.parameters}


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_fault_model_can_be_drawn(llama: ComponentMap, name: str) -> None:
    keys: dict[str, Any] = {"fault_model": name, "sites": ["weight"]}
    selection = Selection(**keys)
    assert selection == Selection(**selection.model_dump())
    for key, value in CATALOGUE[name].keys.items():
        found = getattr(selection, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
    if name == "warp":
        with pytest.raises(InputError, match="widen it"):
            draw(llama, 1, **keys)
        return
    assert all(draw(llama, 5, **keys))


def test_a_dead_channel_is_a_whole_row_of_zeros(llama: ComponentMap) -> None:
    for faults in draw(llama, 5, fault_model="dead-channel", sites=["weight"], components=["up"]):
        assert {fault.site.index for fault in faults} == {(faults[0].site.index[0], n) for n in range(32)}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"fault_model": "gamma"}, "unknown fault_model 'gamma': choose from single-bit"),
        ({"fault_model": "double-bit", "bits_per_word": 3}, "sets bits_per_word = 2: leave bits_per_word out"),
        ({"span": 3}, "belong to a pattern"),
        ({"pattern": "row", "span": 3, "stride": 2}, "stride belongs to"),
        ({"pattern": "row", "span": 0}, "give a number from 1, or 'all'"),
        ({"pattern": "row", "span": 2, "count": 2}, "one event a trial"),
        ({"pattern": "row"}, "strikes several values"),
        ({"fault_model": ["warp"]}, "valid string"),
        ({"pattern": "row", "span": 2, "sites": ["weight"], "draw": "uniform", "rate": 0.1}, "one event a trial"),
        ({"bit_pattern": "adjacent"}, "adjacent bits are two or more"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Selection(**keys)
