"""The words of files: every byte of every file once."""

import json

import numpy as np
import pytest
from safetensors.torch import save_file
from stored_tensors import TENSORS, raw, read

from aftershock.errors import InputError
from aftershock.models import WORDS, file_words
from tiny_gguf import write_gguf
from tiny_models import save_tiny


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


def test_a_file_has_the_words_of_its_tensors(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    words = file_words(str(tmp_path / "x.safetensors"))
    ours = {tensor.name: tensor for tensor in words.tensors}
    assert set(ours) == {*TENSORS, "x.safetensors: header"}
    for name, tensor in TENSORS.items():
        assert read(words, ours[name])[0] == raw(tensor)
        assert ours[name].shape == tuple(tensor.shape)
        assert words.read(ours[name], 0, 0).dtype == WORDS[min(tensor.element_size(), 4)]


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


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.03, 0.6, 0.9999])
def test_a_gguf_that_was_cut_short(tmp_path, share):
    write_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[: int(share * len(data))])
    said = r"tiny\.gguf cannot be read as a GGUF model: it is damaged or cut short, get the file again$"
    with pytest.raises(InputError, match=said):
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
