"""Critical regions fitted by experiment, and the file they are kept in."""

from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import InputError
from aftershock.hardware import CriticalRegion, SystolicArray
from aftershock.models import LoadedModel, load, text_perplexity, text_windows
from aftershock.protect import (
    CriticalRegions,
    FittedRegion,
    GridPoint,
    accumulators,
    changed_sums,
    equal_errors,
    fit_component,
    load_regions,
    save_regions,
    text_digest,
)
from aftershock.protect.regions.fitting import region_of, search_border
from aftershock.stats import upper_bound
from tiny_models import save_tiny

ARRAY = SystolicArray("output-stationary", 16, 16)
TEXT = "The ferry leaves at noon, and nobody waits on the quay for the letters that it brings. " * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(str(save_tiny(tmp_path_factory.mktemp("w8a8") / "llama", "llama")), arithmetic="w8a8-requantised")


@pytest.fixture(scope="module")
def windows(model: LoadedModel) -> torch.Tensor:
    return text_windows(model, TEXT, 1, 2, 20)


def sums_of(model: LoadedModel, component: str, windows: torch.Tensor) -> list[torch.Tensor]:
    """The int32 sums of a component in every layer."""
    found: list[torch.Tensor] = []

    def look(_: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        found.append(sums.clone())
        return sums

    with changed_sums(model, component, look):
        text_perplexity(model, windows)
    return found


@pytest.mark.parametrize("component", ["k", "qk", "sv", "down"])
def test_equal_errors_lie_in_columns_of_their_own(model: LoadedModel, windows: torch.Tensor, component: str) -> None:
    clean = sums_of(model, component, windows)
    with equal_errors(model, component, 1000, 8, ARRAY, seed=3, index=1):
        struck = sums_of(model, component, windows)
    difference = struck[0] - clean[0]
    assert (difference[difference != 0] == 1000).all()
    in_columns = torch.stack([part.ne(0).sum(-1) for part in torch.split(difference, 16, -1)])
    assert in_columns.max() == 1
    assert in_columns.sum() == 8
    again = sums_of(model, component, windows)
    assert all(torch.equal(one, other) for one, other in zip(again, clean, strict=True))


def test_places_of_errors_differ_by_layer_and_index(model: LoadedModel, windows: torch.Tensor) -> None:
    clean = sums_of(model, "v", windows)
    places = []
    for index in (0, 0, 1):
        with equal_errors(model, "v", 1, 4, ARRAY, 0, index):
            places.append((sums_of(model, "v", windows)[0] - clean[0]).nonzero().tolist())
    assert places[0] == places[1] != places[2]


def test_places_of_errors_differ_by_layer(model: LoadedModel, windows: torch.Tensor) -> None:
    before: list[torch.Tensor] = []
    places: list[list[list[int]]] = []

    def keep(_: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        before.append(sums.clone())
        return sums

    def compare(number: int, sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        places.append((sums - before[number]).nonzero().tolist())
        return sums

    with (
        changed_sums(model, "v", keep),
        equal_errors(model, "v", 1, 4, ARRAY, 0, 0),
        changed_sums(model, "v", compare),
    ):
        text_perplexity(model, windows)
    assert [len(one) for one in places] == [4] * len(places)
    assert places[0] != places[1]


def test_tiles_at_the_edge_hold_their_own_errors_alone(model: LoadedModel, windows: torch.Tensor) -> None:
    array = SystolicArray("output-stationary", 12, 16)
    clean = sums_of(model, "down", windows)[0]
    columns = clean.numel() // 32 * 3
    with equal_errors(model, "down", 1000, columns, array, seed=3, index=1):
        struck = sums_of(model, "down", windows)[0]
    for part in torch.split(struck - clean, array.tile_outputs, -1):
        assert (part.ne(0).sum(-1) == 1).all()


def test_more_errors_than_columns_are_refused(model: LoadedModel, windows: torch.Tensor) -> None:
    with (
        equal_errors(model, "k", 1, 2**20, ARRAY, 0, 0),
        pytest.raises(InputError, match="don't fit"),
    ):
        text_perplexity(model, windows)


def test_components_without_sums_of_their_own_are_refused(model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no int32 sums"):
        accumulators(model, "lm_head")
    fused = load(str(save_tiny(tmp_path / "phi3", "phi3")), arithmetic="w8a8")
    with pytest.raises(InputError, match="shares its sums"):
        accumulators(fused, "q")
    assert len(accumulators(fused, "o")) == 2


@given(a=st.floats(1.1, 3), at_one=st.integers(4, 28), theta=st.sampled_from([-1.0, 1.5, 3.5]))
def test_the_search_finds_a_planted_border(a: float, at_one: int, theta: float) -> None:
    planted = CriticalRegion(a, a * (at_one + 0.5), theta)

    def loss(log_size: int, log_frequency: int, _: int) -> float:
        return 1.0 if planted.contains(log_size + log_frequency, log_frequency) else 0.0

    points = search_border(loss, 9, seeds=2, accepted=0.3)
    assert all(point.acceptable != (loss(point.log_size, point.log_frequency, 0) > 0.3) for point in points)
    assert all(len(point.losses) == (2 if point.acceptable else 1) for point in points)
    size, frequency = (axis.ravel() for axis in np.meshgrid(np.arange(31), np.arange(0, 10, 2)))
    inside = planted.contains(size + frequency, frequency)
    if any(not point.acceptable for point in points):
        found = region_of(points)
        # Every harmful point is inside; a line fitted to a coarse grid takes few others with it.
        assert found.contains(size + frequency, frequency)[inside].all()
        assert (found.contains(size + frequency, frequency) & ~inside).sum() <= 12
    else:
        assert not inside.any()


def test_seeds_go_on_while_their_mean_may_still_be_accepted() -> None:
    points = search_border(lambda size, frequency, seed: (0.5, 0.0, 0.0)[seed], 0, seeds=3, accepted=0.3)
    assert {point.losses for point in points} == {(0.5, 0.0, 0.0)}
    early = search_border(lambda size, frequency, seed: (1.0, 0.0, 0.0)[seed], 0, seeds=3, accepted=0.3)
    assert {point.losses for point in early} == {(1.0,)}


def test_a_component_that_nothing_harms_is_recovered_above_what_was_tried_alone() -> None:
    points = search_border(lambda *_: 0.0, 5, seeds=2, accepted=0.3)
    region = region_of(points)
    assert region.theta_freq == 5.0
    assert not region.contains(40, 5)
    assert region.contains(40, 6)
    assert FittedRegion("k", region, 1, 20.0, points).msd == inf


def test_a_fit_says_what_its_points_cost(model: LoadedModel, windows: torch.Tensor) -> None:
    found = fit_component(model, "o", windows, ARRAY, accepted=0.3, seeds=2)
    assert found.clean == text_perplexity(model, windows)
    assert found.tiles == 2 * 3
    assert {point.acceptable for point in found.points} == {True, False}
    for point in found.points:
        assert point.acceptable == (len(point.losses) == 2 and upper_bound(point.losses) <= 0.3)
        assert point.acceptable or found.region.contains(point.log_msd, point.log_frequency)
    bar_of_tile = float(found.of_tile.theta_mag(np.array([2**30])))
    assert bar_of_tile == pytest.approx(float(found.region.theta_mag(np.array([6 * 2**30]))))
    with pytest.raises(InputError, match="give at least 2"):
        fit_component(model, "o", windows, ARRAY, seeds=1)


def regions() -> CriticalRegions:
    points = (GridPoint(20, 3, (0.1, 0.2), True), GridPoint(21, 3, (inf,), False))
    fitted = FittedRegion("o", CriticalRegion(1.5, 20.0), 24, 18.5, points)
    return CriticalRegions(
        "demo:smollm2-135m", "w8a8", "0" * 64, text_digest("a"), 1, 4, 512, 0.3, 2, 7, "output-stationary", (fitted,)
    )


def test_regions_come_back_from_their_file(tmp_path: Path) -> None:
    save_regions(regions(), tmp_path / "regions.json")
    back = load_regions(tmp_path / "regions.json")
    assert back == regions()
    assert back.of("o").region.theta_freq == -inf
    with pytest.raises(InputError, match="no region was fitted for k"):
        back.of("k")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: text.replace('"version": 1', '"version": 9'),
        lambda text: text.replace('"a": 1.5', '"a": 0.5'),
        lambda text: text.replace('"tiles": 24', '"tiles": "many"'),
        lambda _: "[]",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = tmp_path / "regions.json"
    save_regions(regions(), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match="no critical regions"):
        load_regions(path)
    with pytest.raises(InputError, match="can't be read"):
        load_regions(tmp_path / "absent.json")
