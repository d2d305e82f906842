import pytest
import torch

from aftershock.models import reroute
from aftershock.numerics import generator
from tiny_models import tiny_model

FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe"]
HIDDEN = torch.from_numpy(generator(0, 0, "hidden").standard_normal((7, 32))).float()


def router(family):
    return tiny_model(family).model.layers[0].mlp.gate


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_logits_give_the_same_route(family):
    gate = router(family)
    expected = gate(HIDDEN)
    for found, wanted in zip(reroute(gate, HIDDEN, expected[0]), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_raised_logit_chooses_its_expert_for_that_token_alone(family):
    gate = router(family)
    logits, weights, chosen = gate(HIDDEN)
    unchosen = next(expert for expert in range(4) if expert not in chosen[3])
    raised = logits.clone()
    raised[3, unchosen] = 100.0
    _, new_weights, new_chosen = reroute(gate, HIDDEN, raised)
    assert int(new_chosen[3, 0]) == unchosen
    others = torch.arange(7) != 3
    assert torch.equal(new_chosen[others], chosen[others])
    assert torch.equal(new_weights[others], weights[others])
