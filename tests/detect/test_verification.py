"""Verification: what changed is named, what can't be checked is refused."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from plain_words import TENSORS, flip, module_of

from aftershock.detect import Verification, fingerprinted_words, take_fingerprint, verify
from aftershock.errors import InputError
from aftershock.models import Extent, FileWords, file_words, live_words
from tiny_gguf import write_gguf
from tiny_models import save_tiny, tiny_model

KEY = bytes(range(32))
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny(tmp_path / "llama", "llama", torch.bfloat16)


def checked(spec: Path, fingerprint, key: bytes | None = None) -> Verification:
    return verify(fingerprinted_words(str(spec), fingerprint), fingerprint, key)


def extent_of(words: FileWords, name: str) -> Extent:
    return next(tensor for tensor in words.tensors if tensor.name == name).extents[0]


def overwrite(path: Path, offset: int, change: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= change
    path.write_bytes(data)


@pytest.mark.parametrize("key", [None, KEY])
def test_files_that_are_as_they_were(folder, key):
    words = file_words(str(folder))
    found = verify(words, take_fingerprint(words, key=key), key)
    assert found.clean
    assert (found.differing, found.reshaped, found.resized, found.missing, found.extra) == ((), (), (), (), ())
    assert (found.headers, found.settings, found.bytes) == (1, 4, sum(words.files.values()))
    assert found.checked == len(words.tensors) - 5


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("profile", ["exact", "small"])
def test_a_changed_tensor_is_named(folder, profile, key):
    words = file_words(str(folder))
    fingerprint = take_fingerprint(words, profile, key)
    extent = extent_of(words, NAME)
    overwrite(folder / extent.file, extent.offset + extent.size - 1, 128)
    found = checked(folder, fingerprint, key)
    assert not found.clean
    assert found.differing == (NAME,)


def test_changed_settings_are_named(folder):
    fingerprint = take_fingerprint(file_words(str(folder)))
    overwrite(folder / "config.json", 30)
    (folder / "generation_config.json").write_bytes((folder / "generation_config.json").read_bytes() + b"\n")
    (folder / "tokenizer_config.json").write_bytes(b"{}")
    found = checked(folder, fingerprint)
    assert set(found.differing) == {"config.json", "tokenizer_config.json"}
    assert set(found.resized) == {"generation_config.json", "tokenizer_config.json"}


def test_files_that_came_or_went(folder):
    fingerprint = take_fingerprint(file_words(str(folder)))
    (folder / "tokenizer.json").unlink()
    (folder / "added.json").write_text("{}")
    found = checked(folder, fingerprint)
    assert (found.missing, found.extra, found.differing) == (("tokenizer.json",), ("added.json",), ())


def test_a_shard_that_is_gone(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="40KB")
    words = file_words(str(tmp_path / "model"))
    fingerprint = take_fingerprint(words)
    shard = min(name for name in words.files if name.endswith(".safetensors"))
    (tmp_path / "model" / shard).unlink()
    found = checked(tmp_path / "model", fingerprint)
    assert found.missing[0] == shard
    lost = {tensor.name for tensor in words.tensors if tensor.extents[0].file == shard}
    assert set(found.missing) == {shard, *lost}
    assert found.checked + found.headers + found.settings == len(words.tensors) - len(lost)


def headers() -> list:
    """Ways in which a safetensors file's table can break: its length, its syntax, what it says."""
    return [
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: struct.pack("<Q", 10) + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b"data_offsets", b"dAta_offsets", 1),
        lambda data: data.replace(b'"BF16"', b'"FF16"', 1),
        lambda data: data.replace(b'"shape":[32', b'"shape":[99', 1),
        lambda data: data.replace(b"model.norm.weight", b"model.norm.weighu", 1),
    ]


@pytest.mark.parametrize("number", range(len(headers())))
def test_a_broken_header_does_not_hinder(folder, number):
    fingerprint = take_fingerprint(file_words(str(folder)))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    broken = headers()[number](data)
    assert broken != data
    path.write_bytes(broken)
    found = checked(folder, fingerprint)
    assert found.differing == ("model.safetensors: header",)


@pytest.mark.parametrize("place", [0, 8, 16, 24, 200])
def test_a_broken_gguf_table_does_not_hinder(tmp_path, place):
    write_gguf(tmp_path / "tiny.gguf")
    fingerprint = take_fingerprint(file_words(str(tmp_path / "tiny.gguf")))
    overwrite(tmp_path / "tiny.gguf", place, 64)
    found = checked(tmp_path / "tiny.gguf", fingerprint)
    assert found.differing == ("tiny.gguf: header",)


def test_a_table_that_lists_fewer_tensors_does_not_hinder(tmp_path):
    """One bit of the number of tensors: the table can be read, and is not taken for another model's."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    fingerprint = take_fingerprint(file_words(str(path)))
    data = bytearray(path.read_bytes())
    data[8] &= ~16
    path.write_bytes(data)
    few, known = file_words(str(path)).tensors, fingerprint.tensors
    assert 2 * len(few) < len(known)
    assert checked(path, fingerprint).differing == ("tiny.gguf: header",)


def test_a_file_of_another_name(tmp_path):
    """Even where the file of the fingerprint's name is beside it."""
    write_gguf(tmp_path / "tiny.gguf")
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf")
    fingerprint = take_fingerprint(file_words(str(tmp_path / "tiny.gguf")))
    assert checked(tmp_path / "copy.gguf", fingerprint).clean
    for place in (-1, 8):
        overwrite(tmp_path / "copy.gguf", place)
    found = checked(tmp_path / "copy.gguf", fingerprint)
    assert found.differing[-1] == "copy.gguf: header"
    assert len(found.differing) == 2
    assert checked(tmp_path / "tiny.gguf", fingerprint).clean


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_file_that_was_cut_short(tmp_path, folder, kind):
    path, spec = folder / "model.safetensors", folder
    if kind == "gguf":
        path = spec = tmp_path / "tiny.gguf"
        write_gguf(path)
    fingerprint = take_fingerprint(file_words(str(spec)))
    path.write_bytes(path.read_bytes()[:-1234])
    with pytest.raises(InputError, match=r"lacks its last 1,234 bytes: it was cut short, copy or download it again"):
        checked(spec, fingerprint)


def test_a_file_that_grew(folder):
    fingerprint = take_fingerprint(file_words(str(folder)))
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    found = checked(folder, fingerprint)
    assert (found.clean, found.resized, found.differing) == (False, ("model.safetensors",), ())


def test_a_fingerprint_of_another_model(tmp_path, folder):
    other = save_tiny(tmp_path / "opt", "opt", torch.bfloat16)
    with pytest.raises(InputError, match=r"of another model: 0 of its \d+ tensors are in this one by name and shape"):
        checked(folder, take_fingerprint(file_words(str(other))))
    smaller = live_words(tiny_model("llama", hidden_size=16))
    with pytest.raises(InputError, match=r"of another model: 0 of its 20 tensors"):
        verify(smaller, take_fingerprint(live_words(tiny_model("llama"))))


def test_a_model_of_another_type():
    fingerprint = take_fingerprint(live_words(tiny_model("llama")))
    with pytest.raises(InputError, match=r"same model in another type: .* was float32 and is bfloat16; load the model"):
        verify(live_words(tiny_model("llama", torch.bfloat16)), fingerprint)


def test_fingerprints_of_the_other_kind(folder):
    files, live = file_words(str(folder)), live_words(tiny_model("llama", torch.bfloat16))
    with pytest.raises(InputError, match="is of files and can't check a live module: take one of a live module"):
        verify(live, take_fingerprint(files))
    with pytest.raises(InputError, match="is of a live module and can't check files: take one of files"):
        verify(files, take_fingerprint(live))
    with pytest.raises(InputError, match="is of a live module and can't check files"):
        fingerprinted_words(str(folder), take_fingerprint(live))


def test_keys_that_are_missing_or_not_wanted(folder):
    words = file_words(str(folder))
    with pytest.raises(InputError, match="taken with a key: give the same key"):
        verify(words, take_fingerprint(words, key=KEY))
    with pytest.raises(InputError, match="taken without a key: give none"):
        verify(words, take_fingerprint(words), KEY)


def test_a_model_that_is_not_there(tmp_path, folder):
    fingerprint = take_fingerprint(file_words(str(folder)))
    with pytest.raises(InputError, match="does not exist"):
        fingerprinted_words(str(tmp_path / "absent"), fingerprint)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("name", [name for name, tensor in TENSORS.items() if tensor.numel()])
def test_a_live_tensor_that_changed_is_named(name, key):
    module = module_of(**TENSORS)
    words = live_words(module)
    fingerprint = take_fingerprint(words, "small", key)
    assert verify(words, fingerprint, key).clean
    flip(getattr(module, name), 0, 0)
    found = verify(words, fingerprint, key)
    assert (found.clean, found.differing, found.checked) == (False, (name,), len(TENSORS))


def test_what_the_checksum_can_not_see_a_key_sees():
    tensor = torch.zeros(3 * 8128, dtype=torch.uint8)
    tensor[8128] = 1
    module = module_of(tensor=tensor)
    words = live_words(module)
    plain, keyed = take_fingerprint(words), take_fingerprint(words, key=KEY)
    module.tensor[8128], module.tensor[0] = 0, 1
    assert verify(words, plain).clean
    assert verify(words, keyed, KEY).differing == ("tensor",)


def test_live_tensors_of_another_form():
    fingerprint = take_fingerprint(live_words(module_of(**TENSORS)))
    others = {**TENSORS, "fp32": TENSORS["fp32"].T.contiguous(), "fp16": TENSORS["fp16"].bfloat16()}
    del others["line"]
    found = verify(live_words(module_of(**others, new=torch.zeros(3))), fingerprint)
    assert (set(found.reshaped), found.missing, found.extra) == ({"fp32", "fp16"}, ("line",), ("new",))
    assert (found.clean, found.differing, found.checked) == (False, (), len(TENSORS) - 3)


def test_under_inference_mode():
    module = tiny_model("llama", torch.bfloat16)
    fingerprint = take_fingerprint(live_words(module))
    with torch.inference_mode():
        assert verify(live_words(module), fingerprint).clean


def test_no_more_than_a_part_is_held(folder, monkeypatch):
    """Of a file only as much as `parts` gives is read at one time."""
    words = file_words(str(folder))
    fingerprint = take_fingerprint(words)
    monkeypatch.setattr("aftershock.models.words._PART", 1)
    read, most = FileWords.read, []

    def watched(self, tensor, first, last):
        most.append((last - first) * tensor.row_bytes)
        return read(self, tensor, first, last)

    monkeypatch.setattr(FileWords, "read", watched)
    assert verify(words, fingerprint).clean
    assert max(most) <= 1 << 20


def test_it_prints_as_json(folder):
    words = file_words(str(folder))
    record = json.loads(verify(words, take_fingerprint(words)).model_dump_json())
    assert record["clean"] is True
    assert record["differing"] == []
