"""A component alone: computed from what a target shows just before it."""

import torch

from aftershock.diagnose.local import local, parts
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Shown, forced
from hand_made import replica_of, shown_by
from hand_planted import PROMPTS
from tiny_models import tiny_loaded


def test_every_point_is_what_the_forced_replay_computes_there() -> None:
    model = tiny_loaded("gemma3")
    replica = replica_of(model)
    tokens, target = shown_by(model, PROMPTS)
    replayed = dict(forced(replica, tokens, target))
    for point in target:
        assert torch.equal(local(replica, tokens, target, point), replayed[point]), point


def test_what_lies_between_is_what_the_target_does_not_show_in_full() -> None:
    model = tiny_loaded("llama")
    replica = replica_of(model)
    _, target = shown_by(model, PROMPTS)
    behind = [Point(kind, 1) for kind in ("q_rope", "k_rope", "attention")]
    assert parts(replica, target, Point("attention", 1)) == tuple(behind)
    few = {**target, Point("q", 1): Shown(target[Point("q", 1)].values[:3], torch.arange(3))}
    assert parts(replica, few, Point("attention", 1)) == (Point("q", 1), *behind)
    alone = {Point("logits"): target[Point("logits")]}
    assert parts(replica, alone, Point("logits")) == tuple(replica.points)


def test_rows_that_are_shown_are_the_target_s_and_others_the_replica_s() -> None:
    model = tiny_loaded("llama")
    replica = replica_of(model)
    tokens, target = shown_by(model, PROMPTS)
    point = Point("down", 0)
    some = {**target, Point("activation", 0): Shown(torch.zeros(2, 48), torch.tensor([1, 4]))}
    found, whole = local(replica, tokens, some, point), local(replica, tokens, target, point)
    assert torch.equal(found[[1, 4]], torch.zeros(2, 32))
    assert torch.allclose(found[5:], whole[5:], rtol=1e-3, atol=1e-5)
