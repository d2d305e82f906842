"""What a bundle says of its tokens and its arithmetic."""

from dataclasses import replace
from hashlib import blake2b

import pytest
import torch

from aftershock.capture import Bundle, Engine, Manifest, Request, Weight, record
from aftershock.diagnose import diagnose
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.declared import arithmetic_of, reference_dtype, tokens_of
from aftershock.diagnose.functions import angles_in_turn
from aftershock.errors import InputError
from tiny_models import tiny_loaded

PROMPTS = [list(range(5, 49)), list(range(20, 28)), list(range(7, 51))]

GGML = Arithmetic(
    torch.float32, cache=torch.float16, attention=torch.float16, gelu=torch.float16, angles=angles_in_turn
)


def manifest_of(dtype="float32", engine="an engine", **settings):
    requests = (
        Request(id="a", tokens=(5, 6, 7), positions=(1, 2, 3), prompt_tokens=2, sampled=(7, 8)),
        Request(id="b", tokens=(9,), positions=(0,)),
    )
    own = Engine(name=engine, version="1")
    return Manifest(engine=own, model="m", dtype=dtype, settings=settings, requests=requests, records=())


def weight(component, dtype):
    return Weight(name=component, component=component, layer=0, shape=(8, 256), dtype=dtype, digest="00")


def test_tokens_are_at_the_positions_that_they_should_have():
    tokens = tokens_of(manifest_of(), torch.device("cpu"))
    assert tokens.ids.tolist() == [5, 6, 7, 9]
    assert tokens.positions.tolist() == [0, 1, 2, 0]
    assert (tokens.lengths, tokens.prompts) == ((3, 1), (2, 1))


@pytest.mark.parametrize(
    ("manifest", "arithmetic", "reference"),
    [
        (manifest_of("bfloat16"), Arithmetic(torch.bfloat16), "bfloat16"),
        (manifest_of("float64"), Arithmetic(torch.float32), "float32"),
        (manifest_of("stored"), Arithmetic(torch.float32, activation_bits=8), "float32"),
        (manifest_of("Q4_K_M"), Arithmetic(torch.float32, activation_bits=8), "float32"),
        (
            manifest_of("stored").model_copy(update={"weights": (weight("o", "Q4_K"), weight("q", "Q5_0"))}),
            Arithmetic(torch.float32, activation_bits=8, super_blocks=frozenset({"o"})),
            "float32",
        ),
        (manifest_of(engine="llama.cpp"), GGML, "float32"),
        (
            manifest_of(engine="llama.cpp", options={"cache_type": "f32"}),
            Arithmetic(torch.float32, gelu=torch.float16, angles=angles_in_turn),
            "float32",
        ),
        (
            manifest_of(engine="llama.cpp", options={"cache_type": "f32", "flash_attention": True}),
            replace(GGML, sums=torch.float16),
            "float32",
        ),
        (
            manifest_of(arithmetic={"cache_dtype": "float8_e4m3fn", "activation_bits": 8}),
            Arithmetic(torch.float32, torch.float8_e4m3fn, 8),
            "float32",
        ),
    ],
)
def test_the_arithmetic_is_what_is_declared(manifest, arithmetic, reference):
    assert arithmetic_of(manifest) == arithmetic
    assert reference_dtype(manifest.dtype) == reference


@pytest.mark.parametrize("dtype", ["int8", "FP32", "float8_e4m3fn"])
def test_a_type_that_nothing_is_computed_in_is_refused(dtype):
    with pytest.raises(InputError, match=f"dtype is {dtype}, which nothing is computed in: write one of float64"):
        arithmetic_of(manifest_of(dtype))


def test_a_cache_of_a_type_that_there_is_none_of_is_refused():
    with pytest.raises(InputError, match="give a type as torch names it"):
        arithmetic_of(manifest_of(arithmetic={"cache_dtype": "f16"}))


def test_a_target_in_float64_is_diagnosed_with_the_rounding_of_float32():
    """Norms, softmax and rotations of such a model are in fp32, so that nothing less can be told from rounding."""
    reference, wide = tiny_loaded("llama"), tiny_loaded("llama", torch.float64)
    clean = diagnose(reference, record(wide, PROMPTS))
    assert clean.verdict.startswith("no divergence")
    assert max(one.local for one in clean.curve) < clean.threshold
    wide.module.model.layers[1].self_attn.scaling *= 1.001
    found = diagnose(reference, record(wide, PROMPTS))
    assert (found.component, found.cause, found.layers) == ("attention", "attention_scale", (1,))


def test_weights_in_float64_are_held_against_the_references():
    reference = tiny_loaded("llama")
    tensor = reference.module.model.norm.weight.double()
    digest = blake2b(tensor.numpy().tobytes(), digest_size=16).hexdigest()
    held = Weight(name="model.norm.weight", component="norm", shape=tuple(tensor.shape), dtype="F64", digest=digest)
    bundle = record(reference, PROMPTS)
    found = diagnose(reference, Bundle(bundle.manifest.model_copy(update={"weights": (held,)}), bundle.tensors))
    assert next(rung.state for rung in found.rungs if rung.name == "weights") == "agrees"


def test_a_bundle_that_is_incomplete_says_so_in_its_diagnosis():
    reference = tiny_loaded("llama")
    bundle = record(reference, PROMPTS)
    partial = Bundle(bundle.manifest.model_copy(update={"complete": False}), bundle.tensors)
    sentence = "what transformers would have computed after it failed: its bundle is incomplete"
    assert sentence in diagnose(reference, partial).invisible
    assert sentence in diagnose(reference, bundle, beside=[partial]).invisible
    assert sentence not in diagnose(reference, bundle).invisible
