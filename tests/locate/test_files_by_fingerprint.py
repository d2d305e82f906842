"""Damage in files of every kind, found and undone with nothing but a fingerprint."""

import numpy as np
import pytest
import torch
from flipped import flip_byte, flip_word

from aftershock.detect import fingerprinted_words, take_fingerprint
from aftershock.errors import InputError
from aftershock.locate import clean_digests, describe, locate_by_fingerprint, repair_files
from aftershock.models import file_words, live_words
from tiny_gguf import write_gguf
from tiny_models import save_tiny, tiny_model

PROFILES = ("exact", "small")


@pytest.fixture(params=["folder", "gguf"])
def model(request, tmp_path):
    """The spec of a tiny model on disk."""
    if request.param == "folder":
        save_tiny(tmp_path / "model", "llama", torch.bfloat16)
        return tmp_path / "model"
    write_gguf(tmp_path / "model.gguf", "proj", "Q4_1")
    return tmp_path / "model.gguf"


def files_of(model):
    return {path: path.read_bytes() for path in (model.iterdir() if model.is_dir() else [model])}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "keyed"])
def test_files_are_repaired_bit_for_bit(model, profile, key):
    clean = files_of(model)
    words = file_words(str(model))
    fingerprint = take_fingerprint(words, profile, key)
    for number, tensor in enumerate(words.tensors):
        if number % 3 == 0:
            flip_word(words, tensor.name, tensor.rows // 2, 0, 8 * tensor.width - 1)
    assert files_of(model) != clean
    broken = fingerprinted_words(str(model), fingerprint)
    located = locate_by_fingerprint(broken, fingerprint, key)
    assert not located.ambiguous
    repair_files(broken, located, clean_digests(broken, fingerprint), key=key)
    assert files_of(model) == clean


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("offset", [0, 3, 7, 8, 20, 100])
def test_a_broken_header_is_repaired(model, profile, offset):
    """Magic, lengths, counts, names: whatever they become, the fingerprint knows where everything lies."""
    clean = files_of(model)
    fingerprint = take_fingerprint(file_words(str(model)), profile)
    weights = model / "model.safetensors" if model.is_dir() else model
    for place in (offset, offset + 1):
        flip_byte(weights, place, 0x44)
    broken = fingerprinted_words(str(model), fingerprint)
    located = locate_by_fingerprint(broken, fingerprint)
    assert [changes.tensor.name for changes in located.changes] == [f"{weights.name}: header"]
    repair_files(broken, located, clean_digests(broken, fingerprint))
    assert files_of(model) == clean


def test_a_settings_file_is_repaired(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    clean = files_of(folder)
    fingerprint = take_fingerprint(file_words(str(folder)), "exact")
    for offset in (4, 30, 60):
        flip_byte(folder / "config.json", offset, 0x80)
    broken = fingerprinted_words(str(folder), fingerprint)
    located = locate_by_fingerprint(broken, fingerprint)
    repair_files(broken, located, clean_digests(broken, fingerprint))
    assert files_of(folder) == clean


def test_a_scale_of_a_block_is_repaired_and_named(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, "proj", "Q4_1")
    clean = path.read_bytes()
    words = file_words(str(path))
    fingerprint = take_fingerprint(words, "small")
    tensor = next(tensor for tensor in words.tensors if tensor.name == "blk.0.ffn_down.weight")
    flip_word(words, tensor.name, *(int(part) for part in np.divmod(10 * 7, tensor.columns)), 14)
    located = locate_by_fingerprint(words, fingerprint)
    ((word,),) = (list(describe(changes)) for changes in located.changes)
    assert word.stored == "row 3, block 1: scale bit 14"
    repair_files(words, located, clean_digests(words, fingerprint))
    assert path.read_bytes() == clean


def test_a_copy_of_another_name_is_repaired(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    clean = (tmp_path / "model.gguf").read_bytes()
    fingerprint = take_fingerprint(file_words(str(tmp_path / "model.gguf")), "small")
    copy = (tmp_path / "model.gguf").rename(tmp_path / "copy.gguf")
    for offset in (8, 40_000):
        flip_byte(copy, offset, 4)
    broken = fingerprinted_words(str(copy), fingerprint)
    located = locate_by_fingerprint(broken, fingerprint)
    assert len(located.changes) == 2
    assert {word.file for changes in located.changes for word in describe(changes)} == {"copy.gguf"}
    assert located.changes[-1].tensor.name == "copy.gguf: header"
    done = repair_files(broken, located, clean_digests(broken, fingerprint))
    assert done.files == (copy,)
    assert copy.read_bytes() == clean


def test_what_words_cannot_mend_is_named(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    fingerprint = take_fingerprint(file_words(str(folder)), "exact")
    with pytest.raises(InputError, match="does not exist"):
        fingerprinted_words(str(tmp_path / "other"), fingerprint)
    with pytest.raises(InputError, match="of a live module"):
        fingerprinted_words(str(folder), take_fingerprint(live_words(tiny_model("llama")), "exact"))
    (folder / "config.json").write_text("{}" + " " * 5_000)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json.*config\.json: missing, or of another size"):
        locate_by_fingerprint(fingerprinted_words(str(folder), fingerprint), fingerprint)
