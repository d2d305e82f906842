"""The source of stored words: every byte of every file once, every word of a live module in place."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from aftershock.errors import InputError
from aftershock.models import WORDS, file_words, live_words, parts
from aftershock.models.words import as_matrix
from aftershock.numerics import generator
from tiny_gguf import write_gguf
from tiny_models import save_tiny, tiny_model

TENSORS = {
    "matrix": torch.linspace(-3, 3, 70 * 90).bfloat16().view(70, 90),
    "flat": torch.linspace(-3, 3, 33),
    "codes": torch.arange(77).to(torch.int8).view(7, 11),
    "fp64": torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
    "nan": torch.tensor([float("nan"), -0.0]),
}


def raw(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(words, tensor):
    """All bytes of a tensor, and the padding."""
    data = b"".join(raw(rows) for _, rows in parts(words, tensor))
    return data[: tensor.size], data[tensor.size :]


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


def test_files_are_covered_byte_by_byte(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    write_gguf(tmp_path / "tiny.gguf")
    for words in (file_words(str(folder)), file_words(str(tmp_path / "tiny.gguf"))):
        seen = {name: np.zeros(size, np.int8) for name, size in words.files.items()}
        for tensor in words.tensors:
            assert tensor.size == sum(extent.size for extent in tensor.extents)
            for extent in tensor.extents:
                seen[extent.file][extent.offset : extent.offset + extent.size] += 1
            data = b"".join(
                (words.folder / one.file).read_bytes()[one.offset : one.offset + one.size] for one in tensor.extents
            )
            own, padding = read(words, tensor)
            assert own == data
            assert not any(padding)
        assert all((count == 1).all() for count in seen.values())


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


def test_a_file_has_the_words_of_its_tensors(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    words = file_words(str(tmp_path / "x.safetensors"))
    ours = {tensor.name: tensor for tensor in words.tensors}
    assert set(ours) == {*TENSORS, "x.safetensors: header"}
    for name, tensor in TENSORS.items():
        assert read(words, ours[name])[0] == raw(tensor)
        assert ours[name].shape == tuple(tensor.shape)
        assert words.read(ours[name], 0, 0).dtype == WORDS[min(tensor.element_size(), 4)]


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


def test_live_tensors_that_are_not_there():
    words = live_words(tiny_model("llama"))
    with pytest.raises(InputError, match=r"has no tensor model\.absent"):
        words.tensor("model.absent")
    module = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(InputError, match="on the meta device and holds no words"):
        live_words(module).tensor("weight")


def test_files_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        file_words(str(tmp_path / "absent.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.safetensors file"):
        file_words(str(tmp_path / "empty"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(5))
    with pytest.raises(InputError, match="cannot be read as a GGUF model"):
        file_words(str(tmp_path / "broken.gguf"))
    save_file(TENSORS, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-1])
    with pytest.raises(InputError, match="damaged or cut short"):
        file_words(str(tmp_path / "x.safetensors"))


def test_a_table_that_lies_is_refused(tmp_path):
    table = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(table).to_bytes(8, "little") + table + bytes(12))
    with pytest.raises(InputError, match="damaged or cut short"):
        file_words(str(tmp_path / "x.safetensors"))


def test_a_gguf_that_was_cut_short(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match=r"cannot be read as a GGUF model|was cut short"):
        file_words(str(tmp_path / "tiny.gguf"))


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    words = file_words(str(tmp_path / "x.safetensors"))
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-10])
    last = max(words.tensors, key=lambda one: one.extents[-1].offset)
    with pytest.raises(InputError, match="too early: it was cut short"):
        words.read(last, 0, last.rows)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(InputError, match="can't be read"):
        words.read(last, 0, last.rows)
