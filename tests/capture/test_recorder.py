"""What the recorder for transformers keeps."""

import pytest
import torch

from aftershock.capture import record
from aftershock.errors import InputError
from aftershock.models import component_map, output_tensor
from aftershock.numerics import words
from tiny_models import FAMILIES, tiny_loaded

PROMPTS = ["one two", "three", "a longer one", "4 5 6 7"]


def equal(first, second):
    return torch.equal(words(first), words(second)) if first.is_floating_point() else torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_a_record_with_its_input(family):
    model = tiny_loaded(family)
    bundle = record(model, PROMPTS)
    records = bundle.manifest.records
    assert [one.module for one in records] == list(dict.fromkeys(site.module for site in model.components.outputs))
    named = {parameter.name: parameter.shape for one in records for parameter in one.parameters}
    stored = {name: tuple(tensor.shape) for name, tensor in model.module.named_parameters()}
    assert stored.items() <= named.items()
    assert all(one.input is not None for one in records if one.parameters)
    tokens = sum(map(len, PROMPTS))
    assert {len(tensor) for tensor in bundle.tensors.values()} == {tokens}
    for one in records:
        roles = {(site.component, site.rows.offset) for site in model.components.outputs if site.module == one.module}
        assert {(share.component, share.offset) for share in one.shares} == roles


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_given_their_recorded_inputs_return_their_recorded_outputs(family):
    model = tiny_loaded(family)
    bundle = record(model, PROMPTS)
    calls = 0
    for one in bundle.manifest.records:
        if one.operation == "other":
            continue
        part, inputs = model.module.get_submodule(one.module), bundle.input(one)
        if one.operation == "embedding":
            output = part.weight[inputs] * getattr(part, "embed_scale", 1.0)
        else:
            output = output_tensor(part(inputs))
        torch.testing.assert_close(output, bundle.output(one))
        calls += 1
    assert calls >= 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_recordings_are_equal_to_the_bit(dtype):
    model = tiny_loaded("gemma3", dtype)
    first, second = record(model, PROMPTS), record(model, PROMPTS)
    assert first.manifest == second.manifest
    assert all(equal(tensor, second.tensors[stored]) for stored, tensor in first.tensors.items())


def test_tokens_stand_request_by_request_whatever_ran_together():
    model = tiny_loaded("gemma3")
    mixed = record(model, PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        start = mixed.manifest.starts[number]
        if sum(len(other) == len(prompt) for other in PROMPTS) > 1:
            continue
        alone = record(model, [prompt])
        for one, other in zip(mixed.manifest.records, alone.manifest.records, strict=True):
            assert equal(mixed.output(one)[start : start + len(prompt)], alone.output(other)), one.module
        assert equal(mixed.logits[start : start + len(prompt)], alone.logits)


def test_logits_are_what_the_model_gives():
    model = tiny_loaded("gemma2", torch.bfloat16)  # whose logits are capped after lm_head
    ids = model.tokenizer(PROMPTS[2])["input_ids"]
    bundle = record(model, [ids])
    with torch.inference_mode():
        logits = model.module(torch.tensor([ids])).logits[0]
    assert equal(bundle.logits, logits.clone())
    assert not equal(bundle.logits, bundle.output(bundle.manifest.records[-1]))


def test_values_are_taken_before_others_change_them():
    model = tiny_loaded("llama")
    clean = record(model, PROMPTS)
    attention = model.module.model.layers[0].self_attn
    seen = []

    def spoil(*_):
        seen.pop().zero_()

    attention.q_proj.register_forward_hook(lambda _, __, output: seen.append(output))
    attention.v_proj.register_forward_hook(spoil)
    spoilt = record(model, PROMPTS)
    at = next(one for one in clean.manifest.records if one.module.endswith("0.self_attn.q_proj"))
    after = next(one for one in clean.manifest.records if one.module.endswith("0.self_attn.o_proj"))
    assert equal(spoilt.output(at), clean.output(at))
    assert not equal(spoilt.output(after), clean.output(after))


def test_what_several_modules_take_is_kept_once():
    records = {one.module: one for one in record(tiny_loaded("llama"), PROMPTS).manifest.records}
    q, k, v = (records[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv")
    assert q.input == k.input == v.input == records["model.layers.0.input_layernorm"].output
    assert q.output != k.output


def test_a_tied_tensor_names_all_its_modules():
    records = {one.module: one for one in record(tiny_loaded("llama"), PROMPTS).manifest.records}
    (head,), (table,) = records["lm_head"].parameters, records["model.embed_tokens"].parameters
    assert head.name == table.name == "model.embed_tokens.weight"
    assert head.modules == ("model.embed_tokens", "lm_head")


def test_hooks_are_gone_afterwards_and_after_an_error():
    model = tiny_loaded("opt")
    record(model, PROMPTS)

    def fail(*_):
        raise RuntimeError("stop")

    handle = model.module.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        record(model, PROMPTS)
    handle.remove()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())
    assert component_map(model.module) == model.components


def test_texts_and_their_tokens_are_the_same_prompts():
    model = tiny_loaded("qwen3")
    ids = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert record(model, PROMPTS).manifest == record(model, ids).manifest


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "there is no list of prompts"),
        ("one text", "there is no list of prompts"),
        ([[]], "prompt 0 has 0 tokens"),
        ([[5], [5] * 600], "prompt 1 has 600 tokens"),
        ([[5, 1000]], "prompt 0 holds a token"),
        ([[-1]], "prompt 0 holds a token"),
    ],
)
def test_prompts_that_the_model_cannot_take_are_refused(prompts, sentence):
    with pytest.raises(InputError, match=sentence):
        record(tiny_loaded("llama"), prompts)
