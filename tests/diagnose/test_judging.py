"""Healthy models raise no alarm, whatever their family, arithmetic and shapes; single rows and channels do."""

from dataclasses import replace

import pytest
import torch
from given_ratios import deviation

from aftershock.diagnose.judging import OVERALL, is_wrong, judge
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Shown, deviations
from aftershock.numerics import generator
from hand_made import FAMILIES, replica_of, shown_by
from hand_planted import PROMPTS, diagnosed, layers_of
from tiny_models import tiny_loaded

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_key_value_heads": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_model_is_not_blamed(family: str, dtype: torch.dtype) -> None:
    number = FAMILIES.index(family)
    model = tiny_loaded(family, dtype, **(WIDE if number % 2 else {}))
    if number % 3 == 0:
        model.module.set_attn_implementation("eager")
    draws = generator(1, number, "prompts")
    prompts = [draws.integers(3, 100, size=length).tolist() for length in (90, 30, 1, 60)]
    replica = replica_of(model)
    tokens, target = shown_by(model, prompts)
    found = deviations(replica, tokens, target)
    assert {own.point for own in found} == set(target)
    judgement = judge(found, replica, tokens, target)
    assert judgement.wrong == ()
    assert judgement.onset is None
    assert judgement.suspects == ()


ROWS, CHANNELS = torch.ones(1000), torch.ones(64)


@pytest.mark.parametrize(
    ("rows", "channels", "wrong"),
    [
        (ROWS, CHANNELS, False),
        (ROWS * 1.4, CHANNELS, False),
        (ROWS * 1.6, CHANNELS, True),
        (ROWS.index_fill(0, torch.tensor([7]), 4.5), CHANNELS, False),
        (ROWS.index_fill(0, torch.tensor([7]), 5.5), CHANNELS, True),
        (ROWS.index_fill(0, torch.tensor([7, 8]), 3.5), CHANNELS, False),
        (ROWS.index_fill(0, torch.tensor([7, 8, 90]), 3.5), CHANNELS, True),
        (ROWS, CHANNELS.index_fill(0, torch.tensor([3]), 5.5), True),
        (ROWS, CHANNELS.index_fill(0, torch.tensor([3]), torch.inf), True),
    ],
)
def test_a_point_is_wrong_all_over_or_where_few_stand_out(
    rows: torch.Tensor, channels: torch.Tensor, wrong: bool
) -> None:
    assert is_wrong(deviation(rows, channels)) is wrong


def test_a_healthy_point_s_ratio_is_the_threshold_s_business_alone() -> None:
    assert deviation(ROWS * 3, CHANNELS).ratio == pytest.approx(3)
    assert OVERALL < 3


def test_each_wrong_component_is_found_alone_and_named_in_call_order() -> None:
    def two_errors(model: object) -> None:
        layers_of(model)[0].mlp.down_proj.weight.mul_(1.5)
        layers_of(model)[1].input_layernorm.weight.mul_(2)

    judgement, findings = diagnosed(tiny_loaded("llama"), two_errors)
    assert [own.point for own in judgement.wrong] == [Point("down", 0), Point("attn_norm", 1)]
    assert judgement.onset == Point("down", 0)
    assert [own.component for own in judgement.suspects] == ["down", "attn_norm"]
    assert [(own.component, own.layers) for own in findings] == [("down", (0,)), ("attn_norm", (1,))]


def test_what_the_target_hides_is_suspect_too() -> None:
    model = tiny_loaded("qwen3")
    replica = replica_of(model)
    layers_of(model)[1].self_attn.scaling *= 2
    tokens, target = shown_by(model, PROMPTS)
    hidden = ("q_norm", "k_norm")
    shown = {point: own for point, own in target.items() if point.kind not in hidden}
    judgement = judge(deviations(replica, tokens, shown), replica, tokens, shown)
    assert judgement.onset == Point("attention", 1)
    assert [own.component for own in judgement.suspects] == ["attention", "q_norm", "k_norm", "q_rope", "k_rope"]
    assert {own.layers for own in judgement.suspects} == {(1,)}


def test_tokens_for_which_two_experts_tie_are_not_compared() -> None:
    model = tiny_loaded("mixtral")
    replica = replica_of(model)
    tokens, target = shown_by(model, [list(range(5, 25))])
    router, expert = (target[Point(kind, 0)] for kind in ("router", "expert"))
    tied, other = router.values.clone(), expert.values.clone()
    tied[3], other[3] = 1.0, 9.0
    spoilt = {**target, Point("router", 0): Shown(tied), Point("expert", 0): Shown(other)}
    found = {own.point: own for own in deviations(replica, tokens, spoilt)}
    assert found[Point("expert", 0)].rows.tolist() == [row for row in range(20) if row != 3]
    assert not is_wrong(found[Point("expert", 0)])
    told = {**spoilt, Point("router", 0): router}
    found = {own.point: own for own in deviations(replica, tokens, told)}
    assert is_wrong(found[Point("expert", 0)])


def test_a_model_s_own_values_are_right_to_a_replica_with_a_change_and_wrong_without() -> None:
    model = tiny_loaded("llama")
    replica = replica_of(model)
    tokens, target = shown_by(model, PROMPTS)
    twice = replace(replica.architecture, logit_multiplier=2.0)
    (wrong,) = judge(deviations(replace(replica, architecture=twice), tokens, target), replica, tokens, target).wrong
    assert wrong.point == Point("logits")
