"""How tensors are read as words, and every word of a live module in place."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from stored_tensors import TENSORS, raw, read

from aftershock.errors import InputError
from aftershock.models import Extent, file_words, live_words, parts, renamed
from aftershock.models.words import NO_TENSOR, as_matrix
from aftershock.numerics import generator
from tiny_models import tiny_model


@given(st.lists(st.integers(0, 200), max_size=3).map(tuple), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
def test_rows_and_columns_hold_every_word(shape, element, width):
    size = math.prod(shape) * element
    tensor = as_matrix("x", "bytes", shape, size, width)
    assert size <= tensor.rows * tensor.row_bytes
    assert (tensor.rows - 1) * tensor.row_bytes < size or size == 0
    assert tensor.filled == -(-size // width)


def test_matrices_keep_their_rows_and_lines_become_squares():
    shapes = {(100, 200): (100, 200), (2, 64, 64): (128, 64), (10, 1000): (100, 100), (10_000,): (100, 100), (): (1, 1)}
    for shape, expected in shapes.items():
        tensor = as_matrix("x", "int8", shape, math.prod(shape), 1)
        assert (tensor.rows, tensor.columns) == expected


def test_headers_and_settings_are_named_after_their_files():
    extents = [Extent("a.gguf", 0, 4)], [Extent("a.gguf", 4, 4)], [Extent("b.json", 0, 4)]
    kinds = ("a.gguf: header", NO_TENSOR), ("a.gguf", "F32"), ("b.json", NO_TENSOR)
    tensors = [as_matrix(name, form, (4,), 4, 1, own) for (name, form), own in zip(kinds, extents, strict=True)]
    assert [tensor.is_tensor for tensor in tensors] == [False, True, False]
    header, tensor, settings = renamed(tensors, {"a.gguf": "c.gguf"})
    assert (header.name, header.extents) == ("c.gguf: header", (Extent("c.gguf", 0, 4),))
    assert (tensor.name, tensor.extents) == ("a.gguf", (Extent("c.gguf", 4, 4),))
    assert settings == tensors[2]


@pytest.mark.parametrize("part", [1, 100, 5000])
def test_parts_do_not_matter(tmp_path, monkeypatch, part):
    save_file(TENSORS, tmp_path / "x.safetensors")
    module = torch.nn.Module()
    for name, tensor in TENSORS.items():
        module.register_buffer(name, tensor)
    for words in (file_words(str(tmp_path / "x.safetensors")), live_words(module)):
        whole = [read(words, tensor) for tensor in words.tensors]
        with monkeypatch.context() as patch:
            patch.setattr("aftershock.models.words._PART", part)
            assert [read(words, tensor) for tensor in words.tensors] == whole
            assert all(len(rows) * tensor.row_bytes <= max(part, tensor.row_bytes) for tensor in words.tensors
                       for _, rows in parts(words, tensor))  # fmt: skip


def test_the_place_of_a_word(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    words = file_words(str(tmp_path / "x.safetensors"))
    tensor = next(one for one in words.tensors if one.name == "matrix")
    file, offset = tensor.place(3, 5)
    data = (tmp_path / file).read_bytes()[offset : offset + 2]
    assert data == raw(TENSORS["matrix"][3, 5])
    with pytest.raises(InputError, match=r"matrix has no word \[70, 0\] in a file"):
        tensor.place(70, 0)


def test_a_live_module_is_read_in_place():
    module = tiny_model("llama", torch.bfloat16)
    words = live_words(module)
    assert len({tensor.name for tensor in words.tensors}) == len(words.tensors)
    assert "lm_head.weight" not in {tensor.name for tensor in words.tensors}  # tied
    for tensor in words.tensors:
        assert read(words, tensor)[0] == raw(words.tensor(tensor.name))
    square = torch.nn.Linear(70, 80)
    words = live_words(square)
    assert words.read(words.tensors[0], 1, 5).data_ptr() == square.weight[1].data_ptr()


def test_parameters_out_of_order():
    module = torch.nn.Module()
    values = generator(0, 0, "weights").standard_normal((80, 90), np.float32)
    module.weight = torch.nn.Parameter(torch.from_numpy(values).T)
    words = live_words(module)
    assert read(words, words.tensors[0])[0] == raw(module.weight.contiguous())


def test_buffers_that_a_forward_may_rewrite_are_listed_by_name():
    module = torch.nn.Module()
    module.kept = torch.nn.BatchNorm1d(3)
    module.register_buffer("frequencies", torch.ones(4), persistent=False)
    kept = [f"kept.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert [tensor.name for tensor in live_words(module).tensors] == kept
    named = live_words(module, ["frequencies"])
    assert [tensor.name for tensor in named.tensors if tensor.name not in kept] == ["frequencies"]
    with pytest.raises(InputError, match=r"no buffer absent: give names as named_buffers\(\) has them"):
        live_words(module, ["frequencies", "absent"])


def test_live_tensors_that_are_not_there():
    words = live_words(tiny_model("llama"))
    with pytest.raises(InputError, match=r"has no tensor model\.absent"):
        words.tensor("model.absent")
    module = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(InputError, match="on the meta device and holds no words"):
        live_words(module).tensor("weight")
