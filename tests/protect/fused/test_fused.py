"""Checks by the steps between products: the same words, and a struck product is told from the others."""

import functools
from collections.abc import Iterator

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaAttention

from aftershock.detect import linear_checksum, rounding_of
from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.numerics import words
from aftershock.protect import Checksum, FusedChecksum, Protected, Site, protect
from aftershock.protect.fused import plain_steps
from aftershock.protect.fused.decoder_block import guard
from aftershock.protect.fused.llama import FusedTally
from aftershock.protect.fused.row_parts import UNSEEN, Bound, Kept, judge
from tiny_models import tiny_loaded

TOKENS = torch.arange(4, 28).view(2, 12)
GROUPS = {
    "self_attn.k_proj": "q+k+v",
    "self_attn.o_proj": "o",
    "mlp.up_proj": "gate+up",
    "mlp.down_proj": "down",
}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_loaded("llama", request.param)


@pytest.fixture
def protected(model: LoadedModel) -> Iterator[Protected]:
    with protect(model, [FusedChecksum()]) as made:
        yield made


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=TOKENS).logits
    return words(found)


def written(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = model.module.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    return made


def wrong(protected: Protected) -> list[tuple[int | None, str]]:
    """Layer and components of each check that saw something."""
    return [(counts.site.layer, counts.site.component) for counts in protected.report() if counts.wrong]


def test_clean_words_stay_and_nothing_alarms(model: LoadedModel):
    before = logits(model), written(model)
    with protect(model, [FusedChecksum()]) as protected:
        during = logits(model), written(model)
        assert wrong(protected) == []
        assert {counts.checked for counts in protected.report()} == {TOKENS.numel()}
    after = logits(model), written(model)
    for one, other, last in zip(before, during, after, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, last)


@pytest.mark.parametrize("path", GROUPS)
def test_a_struck_weight_is_seen_by_its_own_check_alone(protected: Protected, path: str):
    module = protected.model.module.get_submodule(f"model.layers.1.{path}")
    with torch.no_grad():
        module.weight[3, 5] += 1000.0
    logits(protected.model)
    assert wrong(protected) == [(1, GROUPS[path])]
    protected.reset()
    with torch.no_grad():
        module.weight[3, 5] = 0.0
    protected.renew()
    logits(protected.model)
    assert wrong(protected) == []


@pytest.mark.parametrize("values", [(1e4,), (torch.nan,), (1e4, -1e4)], ids=str)
@pytest.mark.parametrize("path", GROUPS)
def test_struck_outputs_are_seen_in_their_row(protected: Protected, path: str, values: tuple[float, ...]):
    def strike(_module: torch.nn.Module, _arguments: object, output: torch.Tensor) -> None:
        output[1, 2, : len(values)] = torch.tensor(values)

    hook = protected.model.module.get_submodule(f"model.layers.0.{path}").register_forward_hook(strike)
    logits(protected.model)
    hook.remove()
    own = [one for one in protected.report() if (one.site.layer, one.site.component) == (0, GROUPS[path])]
    assert [counts.wrong for counts in own] == [1]


def test_only_what_is_asked_for_is_checked(model: LoadedModel):
    with protect(model, [FusedChecksum(("o", "down")), Checksum(("lm_head",), "count")]) as protected:
        logits(model)
        checked = {counts.site.component for counts in protected.report() if counts.checked}
    assert checked == {"o", "down", "lm_head"}


def test_products_that_are_checked_as_one_are_counted_once_and_all_covered(protected: Protected):
    logits(protected.model)
    counts = [one for one in protected.report() if one.site.layer == 1]
    assert [one.site.component for one in counts] == ["q+k+v", "o", "gate+up", "down"]
    assert counts[0].site.module == "model.layers.1.self_attn.q_proj"
    covered = {one.site.component for one in protected.coverage if one.protections == ("FusedChecksum",)}
    assert covered == {"q", "k", "v", "o", "gate", "up", "down"}


def test_other_architectures_are_refused():
    with pytest.raises(InputError, match="FusedChecksum is for LlamaForCausalLM"):
        protect(tiny_loaded("gpt2"), [FusedChecksum()])


def test_other_activations_are_refused():
    with pytest.raises(InputError, match="use gelu, FusedChecksum's silu"):
        protect(tiny_loaded("llama", hidden_act="gelu"), [FusedChecksum()])


def test_other_classes_of_layers_are_refused():
    class Normed(LlamaAttention):
        """As of a model with norms of queries and keys."""

    model = tiny_loaded("llama")
    model.module.model.layers[1].self_attn.__class__ = Normed
    with pytest.raises(InputError, match="the steps of Normed are not known"):
        protect(model, [FusedChecksum()])


def test_two_are_refused_and_leave_nothing(model: LoadedModel):
    clean = logits(model)
    with pytest.raises(InputError, match="given twice"):
        protect(model, [FusedChecksum(("q",)), FusedChecksum(("down",))])
    assert not [layer for layer in model.module.model.layers if "forward" in vars(layer)]
    with protect(model, [FusedChecksum(("q", "down"))]):
        assert torch.equal(logits(model), clean)


def test_a_forward_that_was_there_comes_back(model: LoadedModel):
    layer = model.module.model.layers[0]
    own = layer.forward = functools.partial(type(layer).forward, layer)
    with protect(model, [FusedChecksum()]):
        assert layer.forward is not own
    assert layer.forward is own
    assert "forward" not in vars(model.module.model.layers[1])


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_inner_outputs_are_refused(name: str):
    model = tiny_loaded("llama", attn_implementation="eager")
    with protect(model, [FusedChecksum()]):
        with pytest.raises(InputError, match=name):
            model.module(input_ids=TOKENS, **{name: True})
        setattr(model.module.config, name, True)
        with pytest.raises(InputError, match=name):
            model.module(input_ids=TOKENS)
        setattr(model.module.config, name, False)
        logits(model)
    inner = model.module(input_ids=TOKENS, **{name: True})[name.removeprefix("output_")]
    assert {type(one) for one in inner} == {torch.Tensor}


def test_biases_are_part_of_what_is_checked():
    model = tiny_loaded("llama", torch.bfloat16, attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, own in model.module.named_parameters():
            if name.endswith("bias"):
                own.copy_(torch.linspace(-1, 7, len(own)))
    clean = logits(model)
    with protect(model, [FusedChecksum()]) as protected:
        assert torch.equal(logits(model), clean)
        assert wrong(protected) == []


def test_weights_that_need_signs_are_refused():
    model = tiny_loaded("llama")
    with torch.no_grad():
        model.module.get_parameter("model.layers.1.mlp.down_proj.weight")[:] = torch.linspace(-1, 1, 48)
    with pytest.raises(InputError, match="nearly equal"):
        protect(model, [FusedChecksum(("down",))])
    protect(model, [FusedChecksum(("o",))]).remove()


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_rows_that_share_a_place_leave_the_largest_strain():
    own = Bound(torch.full((2,), UNSEEN), 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5)
    # Deviations of 3, 0.25, 0.5 and 0.75 from sums that begin at the bias.
    nothing = torch.zeros(4)
    judge(numbers(1.0, 2.0, 3.0, 4.0), nothing, numbers(4.5, 2.75, 4.0, 5.25), nothing, own)
    assert own.strains.tolist() == [3.0, 0.75]


def test_rows_of_which_a_check_says_nothing_are_infinitely_strained():
    own = Bound(torch.full((4,), UNSEEN), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    nothing = torch.zeros(4)
    judge(numbers(0.0, 1.0, torch.nan, torch.inf), nothing, nothing, nothing, own)
    assert own.strains.tolist() == [0.0, torch.inf, torch.inf, torch.inf]


def test_outputs_that_are_too_large_are_infinitely_strained_and_widen_no_threshold():
    own = Bound(torch.full((3,), UNSEEN), 0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0)
    # Norms of outputs of 5, 6 and 7, of which inputs of norm 2 make 5 at most; the floor's 1 is left to them.
    judge(numbers(3.0, 3.0, 0.0), torch.full((3,), 4.0), torch.zeros(3), numbers(25.0, 36.0, 49.0), own)
    assert own.strains.tolist() == [0.5, 0.5, torch.inf]


def test_places_are_wrong_above_the_threshold():
    own = guard(linear_checksum(torch.eye(8)), rounding_of(torch.float32, "cpu"))
    tally = FusedTally((Site("layer", "down", 0),), "FusedChecksum", own)
    own.bound.strains[:3] = numbers(0.99, 1.0, 1.01)
    assert (tally.read().checked, tally.read().wrong) == (3, 1)
    tally.reset()
    assert (tally.read().checked, tally.read().wrong) == (0, 0)


def test_keys_and_values_are_written_from_their_column_on():
    made = torch.arange(1.0, 25.0).view(1, 3, 8)
    unturned = torch.ones(1, 3, 4), torch.zeros(1, 3, 4)
    kept = Kept(torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 7, 4), torch.tensor(2))
    _, keys, values, _ = plain_steps.rotate(made, made, -made, unturned, 4, kept, False)
    rows = made.view(3, 2, 4).transpose(0, 1)
    expected = torch.cat([torch.zeros(2, 2, 4), rows, torch.zeros(2, 2, 4)], 1)
    assert torch.equal(keys[0], expected)
    assert torch.equal(values[0], -expected)
