"""Checks by the steps between products: the same words, and a struck product is told from the others."""

import functools
from collections.abc import Iterator

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaAttention

from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.numerics import words
from aftershock.protect import Checksum, FusedChecksum, Protected, protect
from tiny_models import tiny_loaded

TOKENS = torch.arange(4, 28).view(2, 12)
GROUPS = {
    "self_attn.k_proj": {"q_proj", "k_proj", "v_proj"},
    "self_attn.o_proj": {"o_proj"},
    "mlp.up_proj": {"gate_proj", "up_proj"},
    "mlp.down_proj": {"down_proj"},
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


def wrong(protected: Protected) -> set[str]:
    return {counts.site.module for counts in protected.report() if counts.wrong}


def test_clean_words_stay_and_nothing_alarms(model: LoadedModel):
    before = logits(model), written(model)
    with protect(model, [FusedChecksum()]) as protected:
        during = logits(model), written(model)
        assert wrong(protected) == set()
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
    assert {name.rpartition(".")[2] for name in wrong(protected)} == GROUPS[path]
    assert all(name.startswith("model.layers.1.") for name in wrong(protected))
    protected.reset()
    with torch.no_grad():
        module.weight[3, 5] = 0.0
    protected.renew()
    logits(protected.model)
    assert wrong(protected) == set()


@pytest.mark.parametrize("path", GROUPS)
def test_a_struck_output_is_seen_in_its_row(protected: Protected, path: str):
    def strike(_module: torch.nn.Module, _arguments: object, output: torch.Tensor) -> None:
        output[1, 2, 0] = torch.nan if path == "mlp.down_proj" else 1e4

    hook = protected.model.module.get_submodule(f"model.layers.0.{path}").register_forward_hook(strike)
    logits(protected.model)
    hook.remove()
    first = [counts for counts in protected.report() if counts.site.layer == 0 and counts.wrong]
    assert {counts.site.module.rpartition(".")[2] for counts in first} >= GROUPS[path]
    own = [counts for counts in first if counts.site.module.endswith(path)]
    assert [counts.wrong for counts in own] == [1]


def test_only_what_is_asked_for_is_checked(model: LoadedModel):
    with protect(model, [FusedChecksum(("o", "down")), Checksum(("lm_head",), "count")]) as protected:
        logits(model)
        checked = {counts.site.component for counts in protected.report() if counts.checked}
    assert checked == {"o", "down", "lm_head"}


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
