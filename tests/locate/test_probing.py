"""Probes of live modules whose weights are not read."""

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from aftershock.capture import record
from aftershock.errors import InputError
from aftershock.locate.live import LiveSuspect
from aftershock.locate.probing import locate_forced, probe_module, probe_norm, probe_table
from aftershock.numerics import generator, words
from tiny_models import FAMILIES, tiny_loaded

PROMPTS = ["hello world, this is", "a prompt"]
INPUTS, OUTPUTS = 40, 24


def linear(dtype=torch.bfloat16, bias=False):
    part = torch.nn.Linear(INPUTS, OUTPUTS, bias=bias).to(dtype)
    draws = generator(0, 0, "probed")
    with torch.no_grad():
        for tensor in part.parameters():
            tensor.copy_(torch.from_numpy(draws.standard_normal(tuple(tensor.shape))))
    return part


def flip(tensor, index, bit):
    words(tensor.data)[index] ^= torch.tensor(1 << bit, dtype=torch.int64).to(words(tensor.data).dtype)


def as_words(finding):
    return [(word.row, word.column) for word in finding.words]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [7, 256])
def test_every_bit_of_a_word_is_seen_and_its_value_read(dtype, chunk):
    clean = linear(dtype)
    for bit in range(8 * clean.weight.element_size()):
        suspect = copy.deepcopy(clean)
        flip(suspect.weight, (5, 33), bit)
        value = suspect.weight[5, 33].item()
        found = probe_module(suspect, clean, INPUTS, dtype, chunk=chunk)
        if value != value:
            assert (found.words, found.rows) == ((), (5,))
        else:
            (word,) = found.words
            assert (word.row, word.column, word.clean, word.found) == (5, 33, clean.weight[5, 33].item(), value)
            assert found.rows == ()


def test_equal_modules_are_clean():
    clean = linear(bias=True)
    assert probe_module(copy.deepcopy(clean), clean, INPUTS, torch.bfloat16).clean


def test_several_words_are_all_seen():
    clean, suspect = linear(), linear()
    places = [(0, 0), (5, 3), (5, 30), (23, 39)]
    for place in places:
        flip(suspect.weight, place, 9)
    assert sorted(as_words(probe_module(suspect, clean, INPUTS, torch.bfloat16))) == places


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 1, 31, 32, 39])
def test_an_infinite_word_is_spelt_by_signs(value, column):
    clean, suspect = linear(), linear()
    with torch.no_grad():
        suspect.weight[7, column] = value
    found = probe_module(suspect, clean, INPUTS, torch.bfloat16)
    assert as_words(found) == [(7, column)]
    assert (found.words[0].found, found.rows) == (value, ())


def test_two_infinities_or_a_nan_in_a_row_tell_the_row_alone():
    clean, suspect = linear(), linear()
    with torch.no_grad():
        suspect.weight[7, [3, 9]] = float("inf")
        suspect.weight[8, 4] = float("nan")
        suspect.weight[9, 5] += 1
    found = probe_module(suspect, clean, INPUTS, torch.bfloat16)
    assert found.rows == (7, 8)
    assert as_words(found) == [(9, 5)]


def test_finite_words_that_overflow_together_are_read_one_by_one():
    clean, suspect = linear(), linear()
    with torch.no_grad():
        suspect.weight[7, [3, 9]] = 3e38
    assert as_words(probe_module(suspect, clean, INPUTS, torch.bfloat16)) == [(7, 3), (7, 9)]


def test_a_bias_is_told_from_words_and_large_probes_see_past_it():
    clean, suspect = linear(bias=True), linear(bias=True)
    flip(suspect.bias, 3, 12)
    flip(suspect.weight, (4, 5), 0)
    found = probe_module(suspect, clean, INPUTS, torch.bfloat16, scale=2.0**40)
    assert (as_words(found), found.bias) == ([(4, 5)], (3,))
    assert found.words[0].found == suspect.weight[4, 5].item()
    assert probe_module(suspect, clean, INPUTS, torch.bfloat16).bias == (3,)


def test_transformers_own_kinds_of_modules():
    clean = Conv1D(OUTPUTS, INPUTS)
    suspect = copy.deepcopy(clean)
    flip(suspect.weight, (30, 2), 20)
    assert as_words(probe_module(suspect, clean, INPUTS, torch.float32)) == [(2, 30)]
    table, faulty = (tiny_loaded("gemma3").module.model.embed_tokens for _ in range(2))
    flip(faulty.weight, (50, 6), 30)
    assert as_words(probe_table(faulty, table, 100)) == [(50, 6)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_of_norms(family, dtype):
    path = "transformer.ln_f" if family == "gpt2" else "model.norm"
    clean, suspect = (tiny_loaded(family, dtype).module.get_submodule(path) for _ in range(2))
    assert probe_norm(suspect, clean, 32, dtype).clean
    bit = 8 * suspect.weight.element_size() - 4
    flip(suspect.weight, 9, bit)
    found = probe_norm(suspect, clean, 32, dtype)
    assert (as_words(found), found.bias) == ([(9, 0)], ())
    if family == "llama":
        assert (found.words[0].clean, found.words[0].found) == (clean.weight[9].item(), suspect.weight[9].item())
    if family == "gpt2":
        flip(suspect.bias, 11, bit)
        found = probe_norm(suspect, clean, 32, dtype)
        assert (as_words(found), found.bias) == ([(9, 0)], (11,))


def test_unlike_modules_are_refused():
    with pytest.raises(InputError, match="probe two copies of one module"):
        probe_module(linear(), torch.nn.Linear(INPUTS, 3, dtype=torch.bfloat16), INPUTS, torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_inputs_forced_on_a_clean_model_show_nothing(family):
    model = tiny_loaded(family, torch.bfloat16)
    assert locate_forced(LiveSuspect(model, record(model, PROMPTS))) == ()


def test_clean_inputs_forced_on_every_module_show_all_faults_at_once():
    model = tiny_loaded("gemma3", torch.bfloat16)
    suspect = LiveSuspect(model, record(model, PROMPTS))
    layers = model.module.model.layers
    with torch.no_grad():
        layers[0].self_attn.k_proj.weight[3, 4] += 1
        layers[0].mlp.down_proj.weight[7, 8] = float("inf")
        layers[1].self_attn.q_norm.weight[5] += 1
        layers[1].mlp.up_proj.weight[9, 10] -= 2
    found = locate_forced(suspect)
    assert [(one.tensors, [word.index for word in one.elements]) for one in found] == [
        (("model.layers.0.self_attn.k_proj.weight",), [(3, 4)]),
        (("model.layers.0.mlp.down_proj.weight",), [(7, 8)]),
        (("model.layers.1.self_attn.q_norm.weight",), [(5,)]),
        (("model.layers.1.mlp.up_proj.weight",), [(9, 10)]),
    ]


def test_experts_that_a_faulty_router_misleads_are_not_accused():
    model = tiny_loaded("mixtral")
    suspect = LiveSuspect(model, record(model, PROMPTS))
    with torch.no_grad():
        model.module.model.layers[0].mlp.gate.weight[2, 4] += 50
        model.module.model.layers[1].mlp.experts.down_proj[:, 3, 4] += 1
    found = locate_forced(suspect)
    assert [one.module for one in found] == ["model.layers.0.mlp.gate", "model.layers.1.mlp.experts"]
    assert found[1].tensors == (
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    )
