"""The replica computes what transformers computes, point by point, and what it is told otherwise."""

from dataclasses import replace

import pytest
import torch

from aftershock.diagnose.arithmetic import TRUTH
from aftershock.diagnose.points import INSIDE, SOURCES, Point
from aftershock.diagnose.replica import Altered, Replica
from hand_made import FAMILIES, replica_of, shown_by
from hand_planted import PROMPTS
from tiny_models import tiny_loaded


def values_of(replica: Replica, tokens: object) -> dict[Point, torch.Tensor]:
    return dict(replica.walk(tokens, lambda _, values: values))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_shown_value_is_what_transformers_computes(family: str) -> None:
    model = tiny_loaded(family)
    replica = replica_of(model)
    tokens, target = shown_by(model, PROMPTS)
    found = values_of(replica, tokens)
    assert list(found) == replica.points
    for point, shown in target.items():
        apart = (found[point] - shown.values).norm() / shown.values.norm()
        assert apart < 2e-5, point


def test_every_kind_has_its_sources_before_it() -> None:
    replica = replica_of(tiny_loaded("gemma3"))
    order = replica.points
    assert set(SOURCES) >= set(INSIDE)
    for point in order:
        assert all(order.index(source) < order.index(point) for source in replica.inputs(point))


def test_an_altered_point_is_computed_otherwise_from_other_points() -> None:
    model = tiny_loaded("llama")
    replica = replace(replica_of(model), arithmetic=TRUTH)
    tokens, _ = shown_by(model, PROMPTS)
    point, source = Point("up", 1), Point("gate", 1)
    altered = {point: Altered((source,), lambda own, at, inputs, tokens: 2 * inputs[0])}
    found = values_of(replace(replica, altered=altered), tokens)
    assert torch.equal(found[point], 2 * found[source])
    assert torch.equal(found[source], values_of(replica, tokens)[source])
