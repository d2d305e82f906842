"""What a bundle says of its tokens and its arithmetic."""

from dataclasses import replace

import pytest
import torch

from aftershock.capture import Engine, Manifest, Request
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.declared import arithmetic_of, reference_dtype, tokens_of
from aftershock.diagnose.functions import angles_in_turn
from aftershock.errors import InputError

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


def test_tokens_are_at_the_positions_that_they_should_have():
    tokens = tokens_of(manifest_of(), torch.device("cpu"))
    assert tokens.ids.tolist() == [5, 6, 7, 9]
    assert tokens.positions.tolist() == [0, 1, 2, 0]
    assert (tokens.lengths, tokens.prompts) == ((3, 1), (2, 1))


@pytest.mark.parametrize(
    ("manifest", "arithmetic", "reference"),
    [
        (manifest_of("bfloat16"), Arithmetic(torch.bfloat16), "bfloat16"),
        (manifest_of("float64"), Arithmetic(torch.float64), "float32"),
        (manifest_of("stored"), Arithmetic(torch.float32, activation_bits=8), "float32"),
        (manifest_of("Q4_K_M"), Arithmetic(torch.float32, activation_bits=8), "float32"),
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


@pytest.mark.parametrize("manifest", [manifest_of("int8"), manifest_of(arithmetic={"cache_dtype": "f16"})])
def test_a_type_that_there_is_none_of_is_refused(manifest):
    with pytest.raises(InputError, match="give a type as torch names it"):
        arithmetic_of(manifest)
