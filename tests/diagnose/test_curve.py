"""The error ratio over a whole run, and from where on it is high."""

import pytest

from aftershock.diagnose.curve import free_ratios, rise
from aftershock.diagnose.points import Point
from hand_made import replica_of, shown_by
from hand_planted import PROMPTS, layers_of
from tiny_models import tiny_loaded


def test_a_healthy_run_stays_at_one() -> None:
    model = tiny_loaded("llama")
    ratios = free_ratios(replica_of(model), *shown_by(model, PROMPTS))
    assert max(ratios.values()) < 1.5
    assert rise(ratios, 1.5) is None


def test_an_error_is_carried_on_to_the_end() -> None:
    model = tiny_loaded("llama")
    replica = replica_of(model)
    layers_of(model)[1].self_attn.scaling *= 1.5
    ratios = free_ratios(replica, *shown_by(model, PROMPTS))
    assert list(ratios) == [point for point in replica.points if point in ratios]
    assert ratios[Point("v", 1)] < 1.5 < ratios[Point("attention", 1)]
    assert ratios[Point("logits")] > 100
    assert rise(ratios, 1.5) == Point("attention", 1)


@pytest.mark.parametrize(
    ("levels", "found"),
    [([1.0] * 40, None), ([1.0] * 12 + [50.0] * 28, 12), ([50.0] * 40, 0), ([1.0] * 12 + [40.0] + [1.0] * 27, None)],
)
def test_a_rise_is_where_a_lasting_level_begins(levels: list[float], found: int | None) -> None:
    points = [Point("residual", number) for number in range(len(levels))]
    ratios = dict(zip(points, levels, strict=True))
    assert rise(ratios, 1.5) == (None if found is None else points[found])


def test_no_points_have_no_rise() -> None:
    assert rise({}, 1.5) is None
