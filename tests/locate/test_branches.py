"""What is added to the residual path, left out and scaled."""

import math
from collections.abc import Callable

import pytest
import torch

from aftershock.locate.by_text import TextLoss
from aftershock.locate.by_text.branches import FINE, GRID, Branch, Damped, branches, least, profile, scaled
from aftershock.models import LoadedModel
from aftershock.numerics import generator, words
from tiny_models import FAMILIES, tiny_loaded

ENDS = {
    "gemma2": ("model.layers.{}.post_attention_layernorm", "model.layers.{}.post_feedforward_layernorm"),
    "gemma3": ("model.layers.{}.post_attention_layernorm", "model.layers.{}.post_feedforward_layernorm"),
    "opt": ("model.decoder.layers.{}.self_attn.out_proj", "model.decoder.layers.{}.fc2"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    "mixtral": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
    "qwen2_moe": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
    "qwen3_moe": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp"),
}
LIKE_LLAMA = ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")
ATTENTION = ("q", "k", "v", "qk_norm", "o")
MLP = ("gate", "up", "down", "fc1", "fc2", "expert", "router")


def tokens() -> torch.Tensor:
    return torch.from_numpy(generator(5, 0, "tokens").integers(4, 100, (2, 16)))


@torch.no_grad()
def logits(model: LoadedModel) -> torch.Tensor:
    found: torch.Tensor = model.module(input_ids=tokens(), use_cache=False).logits
    return found


def silence(model: LoadedModel, branch: Branch) -> None:
    """Weights with which a branch adds nothing."""
    # Gemma's norms scale by 1 + weight.
    nothing = -1.0 if model.spec.startswith("tiny:gemma") else 0.0
    for parameter in model.module.get_submodule(branch.module).parameters():
        parameter.fill_(nothing)


def poison(model: LoadedModel, branch: Branch, value: float = math.nan) -> None:
    """NaN in each matrix of a branch."""
    components = ATTENTION if branch.name == "attention" else MLP
    names = {
        site.name for site in model.components.parameters if site.layer == branch.layer and site.component in components
    }
    assert names
    for name in names:
        model.module.get_parameter(name).view(-1)[::3] = value


def hooks(model: LoadedModel) -> int:
    return sum(len(module._forward_hooks) for module in model.module.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_has_two_branches(family: str) -> None:
    attention, mlp = ENDS.get(family, LIKE_LLAMA)
    assert branches(tiny_loaded(family)) == tuple(
        Branch(layer, name, module.format(layer))
        for layer in (0, 1)
        for name, module in (("attention", attention), ("mlp", mlp))
    )


def test_more_than_ten_layers_are_in_their_order() -> None:
    found = branches(tiny_loaded("llama", num_hidden_layers=12))
    assert [str(branch) for branch in found[18:22]] == [
        "layer 9 attention",
        "layer 9 mlp",
        "layer 10 attention",
        "layer 10 mlp",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_left_out_adds_nothing(family: str) -> None:
    for branch in branches(tiny_loaded(family)):
        model, silent, broken = tiny_loaded(family), tiny_loaded(family), tiny_loaded(family)
        silence(silent, branch)
        poison(broken, branch)
        expected = logits(silent)
        assert not torch.equal(expected, logits(model))
        assert logits(broken).isnan().any()
        for one in (model, broken):
            with scaled(one, branch, 0):
                assert torch.equal(logits(one), expected), branch
            assert hooks(one) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_one_changes_no_bit(family: str) -> None:
    model = tiny_loaded(family)
    before = words(logits(model))
    for branch in branches(model):
        with scaled(model, branch, 1):
            assert hooks(model) == 1
            assert torch.equal(words(logits(model)), before)
        assert torch.equal(words(logits(model)), before)


@pytest.mark.parametrize("alpha", [0.5, 2.0, -1.0])
def test_a_scaled_branch_is_that_of_scaled_weights(alpha: float) -> None:
    for branch in branches(tiny_loaded("llama")):
        model, other = tiny_loaded("llama"), tiny_loaded("llama")
        other.module.get_parameter(f"{branch.module}.weight").mul_(alpha)
        with scaled(model, branch, alpha):
            assert torch.equal(logits(model), logits(other))


def test_the_hook_is_gone_after_a_failure() -> None:
    model = tiny_loaded("llama")
    with pytest.raises(ZeroDivisionError), scaled(model, branches(model)[0], 0):
        raise ZeroDivisionError
    assert hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_profile_puts_a_branch_with_nan_first(family: str, dtype: torch.dtype) -> None:
    for branch in branches(tiny_loaded(family)):
        model = tiny_loaded(family, dtype)
        poison(model, branch)
        text = TextLoss(model, tokens())
        base = text.refresh()
        found = profile(model, text, base)
        assert len(found) == 4
        assert found[0].branch == branch
        assert found[0].gain > 0
        assert [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)
        assert {(one.alpha, one.gain) for one in found[1:]} == {(1.0, 0.0)}
        assert hooks(model) == 0


def brute(model: LoadedModel, base: torch.Tensor, branch: Branch, alphas: tuple[float, ...]) -> Damped:
    gains = {1.0: 0.0}
    for alpha in alphas:
        with scaled(model, branch, alpha):
            gains[alpha] = float((base - TextLoss(model, tokens()).refresh()).mean())
    best = max(gains, key=lambda alpha: gains[alpha])
    return Damped(branch, best, gains[best])


@pytest.mark.parametrize(
    ("call", "alphas"),
    [
        (lambda model, text, base: [least(model, text, base, branch) for branch in branches(model)], FINE),
        (profile, GRID),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_the_scale_is_that_of_the_least_loss(family: str, call: Callable, alphas: tuple[float, ...]) -> None:
    model = tiny_loaded(family)
    # One branch much too large: less of it is better; the others have their best scale wherever it is.
    model.module.get_submodule(branches(model)[2].module).weight.data.mul_(8)
    text = TextLoss(model, tokens())
    base = text.refresh()
    found = {one.branch: one for one in call(model, text, base)}
    assert found == {branch: brute(model, base, branch, alphas) for branch in branches(model)}
    assert len({one.alpha for one in found.values()}) > 1


def test_a_profile_costs_a_pass_for_each_layer_and_scale() -> None:
    model = tiny_loaded("llama")
    text = TextLoss(model, tokens())
    base = text.refresh()
    text.passes = 0
    profile(model, text, base)
    assert text.passes == pytest.approx(len(GRID) * 2 * (1 + 2 / 3))
