"""Parts of a decoder as formulas: two ways to compute the same agree up to their rounding."""

import pytest
import torch

from aftershock.diagnose.architecture import Rotation
from aftershock.diagnose.functions import angles, angles_in_turn, one_by_one, softly
from aftershock.numerics import generator


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(generator(0, 0, "attention").standard_normal(shape))


def masked(sinks: int) -> torch.Tensor:
    """Scores of 30 queries, the last 20 of which see no more than 10 keys, and scores that no value belongs to."""
    order = torch.arange(30)
    apart = order[:, None] - order
    scores = (3 * random(2, 30, 30)).masked_fill((apart < 0) | (apart >= 10), -torch.inf)
    return torch.cat((scores, random(2, 30, sinks)), -1)


@pytest.mark.parametrize("sinks", [0, 1])
def test_attention_added_up_key_by_key_is_the_same(sinks: int) -> None:
    scores, values = masked(sinks), random(2, 30, 8)
    assert torch.allclose(one_by_one(scores, values, torch.float64), softly(scores, values), rtol=1e-12, atol=1e-14)


def test_attention_added_up_in_half_precision_is_rounded_to_it() -> None:
    scores, values = masked(0), random(2, 30, 8)
    apart = (one_by_one(scores, values, torch.float16) - softly(scores, values)).abs().max()
    eps = torch.finfo(torch.float16).eps
    assert eps / 10 < apart < 30 * eps


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_angles_one_from_the_other_are_the_same_up_to_rounding(factor: float) -> None:
    frequencies = tuple(factor * 1e4 ** (-pair / 32) for pair in range(32))
    rotation, positions = Rotation(1e4, frequencies), torch.arange(500)
    true = angles(rotation, positions, torch.float64)
    assert torch.allclose(angles_in_turn(rotation, positions, torch.float64), true, rtol=1e-12)
    errors = [
        ((of(rotation, positions, torch.float32) - true) / true.clamp(min=1e-9)).abs().max()
        for of in (angles, angles_in_turn)
    ]
    assert torch.finfo(torch.float32).eps > errors[0]
    assert 40 * torch.finfo(torch.float32).eps > errors[1] > errors[0]
