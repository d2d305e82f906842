"""Bundles that contradict themselves are refused by name; those that say little are not."""

import pytest
import torch
from engine_like import said

from aftershock.capture import Bundle, Engine, record
from aftershock.diagnose import diagnose
from aftershock.diagnose.consistent import check_consistent
from aftershock.errors import InputError
from tiny_models import tiny_loaded

PROMPTS = [list(range(5, 25)), list(range(30, 38))]


@pytest.fixture(scope="module")
def clean():
    return record(tiny_loaded("llama"), PROMPTS)


def with_request(bundle, **update):
    first, *others = bundle.manifest.requests
    return said(bundle, requests=(first.model_copy(update=update), *others))


def with_wide_logits(bundle):
    """The logits in fp32, whatever the rest is in, with digits of their own."""
    own = bundle.manifest.logits
    stored = own.stored.model_copy(update={"key": "wide", "dtype": "F32"})
    records = tuple(one for one in bundle.manifest.records if one.output != own.stored)
    wide = bundle.logits.float() + 1 / 3
    changed = said(bundle, logits=own.model_copy(update={"stored": stored}), records=records)
    return Bundle(changed.manifest, {**bundle.tensors, stored: wide})


def widened(bundle):
    """The same values, stored in fp32."""
    wide = {own: own.model_copy(update={"dtype": "F32"}) for own in bundle.tensors if own.dtype != "I64"}
    records = tuple(
        one.model_copy(update={"output": wide[one.output], "input": wide.get(one.input, one.input)})
        for one in bundle.manifest.records
    )
    logits = bundle.manifest.logits.model_copy(update={"stored": wide[bundle.manifest.logits.stored]})
    tensors = {wide.get(own, own): values.float() if own in wide else values for own, values in bundle.tensors.items()}
    return Bundle(said(bundle, records=records, logits=logits).manifest, tensors)


def test_a_bundle_without_values_is_refused(clean):
    with pytest.raises(InputError, match="holds no values at all: record modules, or logits"):
        diagnose(tiny_loaded("llama"), said(clean, records=(), logits=None))


def test_a_sampled_token_that_the_logits_do_not_reach_is_refused(clean):
    with pytest.raises(InputError, match="request 0 has token 105, and the bundle's logits have 100 channels"):
        diagnose(tiny_loaded("llama"), with_request(clean, sampled=(105,)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"config": {"rope_scaling": "linear"}}, "settings.config.rope_scaling of the bundle is 'linear'"),
        ({"config": {"rope_parameters": 3}}, "settings.config.rope_parameters of the bundle is 3"),
        ({"sampling": {"repetition_penalty": 0}}, "settings.sampling.repetition_penalty of the bundle is 0"),
        ({"sampling": {"temperature": -1.0}}, "settings.sampling.temperature of the bundle is -1"),
        ({"sampling": {"top_k": 2.5}}, "settings.sampling.top_k of the bundle: "),
        ({"options": {"sampling": {"top_p": float("nan")}}}, "settings.options.sampling.top_p of the bundle is nan"),
    ],
)
def test_settings_that_are_not_what_they_are_named_are_refused(clean, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        diagnose(tiny_loaded("llama"), said(with_request(clean, sampled=(7,)), settings=settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"config": [1], "sampling": 3, "options": "x"},
        {"config": {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}},
        {"sampling": {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}, "options": {"sampling": "default"}},
    ],
)
def test_other_settings_are_taken(clean, settings):
    check_consistent(said(clean, settings=settings))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_of_more_digits_than_the_dtype_are_refused(clean, dtype):
    with pytest.raises(InputError, match=f"says dtype {dtype}, and .* have more digits .*: give the dtype that"):
        diagnose(tiny_loaded("llama"), said(clean, dtype=dtype))


def test_values_of_another_narrow_type_are_refused():
    own = record(tiny_loaded("llama", torch.float16), PROMPTS)
    with pytest.raises(InputError, match="says dtype bfloat16"):
        check_consistent(said(own, dtype="bfloat16"))


def test_values_that_have_no_more_digits_are_taken(clean):
    own = record(tiny_loaded("llama", torch.bfloat16), PROMPTS)
    for bundle in (own, widened(own), with_wide_logits(own), said(widened(own), dtype="float32")):
        check_consistent(bundle)
    llamacpp = Engine(name="llama.cpp", version="1")
    check_consistent(said(clean, dtype="float16", engine=llamacpp))
