"""What changed words are."""

import math

import numpy as np
import pytest
import torch
from flipped import flip_word

from aftershock.locate import component_of, describe, word_changes
from aftershock.models import TensorWords, component_map, file_words, live_words
from aftershock.numerics import GGUF_FORMATS, storage_format
from tiny_gguf import write_gguf
from tiny_models import FAMILIES, save_tiny, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_names_tell_what_the_component_map_tells(family):
    module = tiny_model(family)
    components: dict[str, set[str]] = {}
    layers = {}
    for site in component_map(module).parameters:
        components.setdefault(site.name, set()).update(site.component.removesuffix("+lm_head").split("+"))
        layers[site.name] = site.layer
    for name, expected in components.items():
        component, layer = component_of(name)
        assert set((component or "").split("+")) == expected, name
        assert layer == layers[name], name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", ("embedding", None)),
        ("blk.11.attn_q.weight", ("q", 11)),
        ("blk.0.attn_output.weight", ("o", 0)),
        ("blk.3.attn_k_norm.weight", ("qk_norm", 3)),
        ("blk.3.attn_norm.weight", ("norm", 3)),
        ("blk.3.ffn_gate_exps.weight", ("expert", 3)),
        ("blk.3.ffn_gate_inp.weight", ("router", 3)),
        ("blk.3.ffn_down.weight", ("down", 3)),
        ("output_norm.weight", ("norm", None)),
        ("output.weight", ("lm_head", None)),
        ("rope_freqs.weight", (None, None)),
    ],
)
def test_names_of_gguf_files(name, expected):
    assert component_of(name) == expected


def described(words, name, rows, columns, found, clean):
    tensor = next(tensor for tensor in words.tensors if tensor.name == name)
    axes = (np.array(axis, np.int64) for axis in (rows, columns, found, clean))
    return list(describe(word_changes(tensor, *axes)))


def test_elements_and_values_of_numbers():
    words = live_words(tiny_model("llama", torch.bfloat16))
    (word,) = described(words, "model.layers.1.mlp.up_proj.weight", [2], [20], [0x7F80], [0x3F80])
    assert (word.component, word.layer, word.format) == ("up", 1, "bfloat16")
    assert word.element == divmod(2 * 40 + 20, 32)  # read as a square of 40 columns
    assert word.bits == (14,)
    assert (word.clean_value, word.found_value) == (1.0, math.inf)
    assert word.file is None


def test_places_in_files(tmp_path):
    save_tiny(tmp_path / "model", "llama", torch.float32)
    words = file_words(str(tmp_path / "model"))
    (word,) = described(words, "model.norm.weight", [1], [2], [0xBF800000], [0x3F800000])
    assert word.element == (8,)
    assert (word.clean_value, word.found_value) == (1.0, -1.0)
    flip_word(words, "model.norm.weight", 1, 2, 31)
    assert word.file == "model.safetensors"
    tensor = next(tensor for tensor in words.tensors if tensor.name == "model.norm.weight")
    assert word.offset == tensor.extents[0].offset + 32
    (header,) = described(words, "model.safetensors: header", [0], [3], [7], [6])
    assert (header.element, header.component, header.offset, header.found_value) == (None, None, 3, None)


def test_values_of_64_bits_are_named_by_element():
    module = torch.nn.Module()
    module.register_buffer("steps", torch.arange(10))
    (word,) = described(live_words(module), "steps", [1], [2], [1], [0])
    assert word.element == (3,)  # the eighth 32-bit word
    assert word.found_value is None


def test_fields_of_blocks(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "proj", "Q4_1")
    words = file_words(str(tmp_path / "tiny.gguf"))
    name = "blk.1.ffn_down.weight"
    tensor = next(tensor for tensor in words.tensors if tensor.name == name)
    # A row of 64 values is 2 blocks of 20 bytes: scale, minimum, 16 bytes of quants. Block 3 is block 1 of row 1.
    place = 3 * 10
    rows, columns = zip(*(divmod(place + word, tensor.columns) for word in (0, 1, 2)), strict=True)
    scale, least, quants = described(words, name, rows, columns, [0x7C00, 0x3C00, 0x8001], [0x3C00, 0xBC00, 0])
    assert scale.stored == "row 1, block 1: scale bit 14"
    assert (scale.clean_value, scale.found_value) == (1.0, math.inf)
    assert (least.stored, least.clean_value) == ("row 1, block 1: min bit 15", -1.0)
    assert quants.stored == "row 1, block 1: quant 0 bit 0, quant 17 bit 3"
    assert (quants.found_value, quants.element, quants.component, quants.layer) == (None, None, "down", 1)


@pytest.mark.parametrize("kind", GGUF_FORMATS)
def test_every_bit_of_every_format_has_a_name(kind):
    form = storage_format(kind, 256)
    size = 2 * form.size * 256 // form.elements
    tensor = TensorWords("blk.0.ffn_up.weight", kind.upper(), (2, 256), size, 1, size // 2, 2)
    columns = np.arange(size // 2)
    words = list(describe(word_changes(tensor, np.zeros_like(columns), columns, columns * 0 + 65535, columns * 0)))
    named = [
        (where, name)
        for word in words
        for where, names in (part.split(": ") for part in word.stored.split("; "))
        for name in names.split(", ")
    ]
    assert len(named) == len(set(named)) == 8 * size
