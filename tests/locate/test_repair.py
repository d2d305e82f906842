"""Clean words put back into files and live modules."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flipped import flip_byte, flip_word

from aftershock.detect import file_digest
from aftershock.errors import InputError
from aftershock.locate import (
    Ambiguous,
    Located,
    locate_by_words,
    patch_files,
    repair_files,
    repair_module,
    restore_files,
    suspect_words,
    word_changes,
)
from aftershock.models import Extent, FileWords, TensorWords, file_words
from tiny_gguf import write_gguf
from tiny_models import save_tiny, tiny_model

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with a tiny bf16 model; not to be changed."""
    return save_tiny(tmp_path_factory.mktemp("clean") / "model", "llama", torch.bfloat16)


@pytest.fixture
def broken(clean, tmp_path):
    """A copy with two words of a tensor and a byte of config.json changed."""
    folder = Path(shutil.copytree(clean, tmp_path / "broken"))
    words = file_words(str(folder))
    flip_word(words, UP, 3, 4, 14)
    flip_word(words, UP, 5, 4, 0)
    flip_byte(folder / "config.json", 10, 4)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digests(folder):
    return {path.name: file_digest(path) for path in folder.iterdir()}


def found(folder, clean):
    reference = file_words(str(clean))
    words = suspect_words(str(folder), reference)
    return words, locate_by_words(words, reference), reference


def found_in_full(folder, clean):
    """The same, the suspect read as its own table tells."""
    words, reference = file_words(str(folder)), file_words(str(clean))
    return words, locate_by_words(words, reference), reference


def test_files_are_repaired_in_place(clean, broken):
    words, comparison, _ = found(broken, clean)
    untouched = (broken / "tokenizer.json").stat()
    repaired = repair_files(words, comparison.located, digests(clean))
    assert contents(broken) == contents(clean)
    assert {path.name for path in repaired.files} == {"config.json", "model.safetensors"}
    assert repaired.words == 3
    assert (broken / "tokenizer.json").stat().st_mtime_ns == untouched.st_mtime_ns


def test_a_whole_model_is_written_into_another_folder(clean, broken, tmp_path):
    words, comparison, _ = found(broken, clean)
    before = contents(broken)
    repaired = repair_files(words, comparison.located, digests(clean), tmp_path / "deep" / "mended")
    assert {path.name for path in repaired.files} == set(words.files)
    mended = contents(tmp_path / "deep" / "mended")
    assert mended == {name: contents(clean)[name] for name in words.files}
    assert contents(broken) == before


def test_the_reference_mends_whatever_differs(clean, broken):
    with (broken / "model.safetensors").open("r+b") as file:
        file.seek(-6_000, os.SEEK_END)
        file.write(bytes(6_000))
    words, comparison, reference = found(broken, clean)
    repaired = restore_files(words, comparison, reference)
    assert contents(broken) == contents(clean)
    assert repaired.words == sum(comparison.differing.values())


def test_a_word_of_every_tensor_makes_no_other_model(clean, broken):
    words = file_words(str(broken))
    for tensor in words.tensors:
        if tensor.is_tensor:
            flip_word(words, tensor.name, 0, 0, 0)
    restore_files(*found_in_full(broken, clean))
    assert contents(broken) == contents(clean)


def test_a_table_that_tells_of_other_tensors_is_not_restored(clean, broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"model.norm.weight", b"model.norm.weighu", 1))
    before = contents(broken)
    with pytest.raises(InputError, match="other tensors or other files"):
        restore_files(*found_in_full(broken, clean))
    assert contents(broken) == before


def test_the_models_own_folder_by_another_name_is_mended_in_place(clean, broken):
    words, comparison, _ = found(broken, clean)
    repaired = repair_files(words, comparison.located, digests(clean), broken / ".." / broken.name)
    assert {path.name for path in repaired.files} == {"config.json", "model.safetensors"}


def test_empty_files_go_into_another_folder_too(broken, tmp_path):
    (broken / "merges.txt").touch()
    repaired = patch_files(file_words(str(broken)), Located((), ()), tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(broken)
    assert repaired.words == 0


def test_a_link_stays_a_link_and_modes_stay(clean, tmp_path):
    """As in the hub's cache: snapshots link to blobs."""
    write_gguf(tmp_path / "clean.gguf")
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / "0123"
    shutil.copy(tmp_path / "clean.gguf", blob)
    blob.chmod(0o640)
    flip_byte(blob, 30_000, 8)
    (tmp_path / "model.gguf").symlink_to(blob)
    words, comparison, reference = found(tmp_path / "model.gguf", tmp_path / "clean.gguf")
    restore_files(words, comparison, reference)
    assert (tmp_path / "model.gguf").is_symlink()
    assert blob.read_bytes() == (tmp_path / "clean.gguf").read_bytes()
    assert blob.stat().st_mode & 0o777 == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"blobs", "clean.gguf", "model.gguf"}


@pytest.mark.parametrize("way", ["words", "reference"])
@pytest.mark.parametrize(
    ("step", "error", "expected"),
    [
        ("shutil.copyfile", OSError(errno.ENOSPC, "No space left on device"), InputError),
        ("os.fsync", OSError(errno.EIO, "Input/output error"), InputError),
        ("aftershock.locate.repair.TemporaryDirectory", PermissionError(errno.EACCES, "Permission denied"), InputError),
        ("pathlib.Path.replace", OSError(errno.EROFS, "Read-only file system"), InputError),
        ("pathlib.Path.replace", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_goes_wrong_leaves_the_files_as_they_were(clean, broken, monkeypatch, way, step, error, expected):
    words, comparison, reference = found(broken, clean)
    before = contents(broken)

    def repair():
        if way == "words":
            return repair_files(words, comparison.located, digests(clean))
        return restore_files(words, comparison, reference)

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as broken_disk:
        broken_disk.setattr(step, fail)
        with pytest.raises(expected) as raised:
            repair()
    if expected is InputError:
        assert error.strerror in str(raised.value)
    assert contents(broken) == before
    repair()
    assert contents(broken) == contents(clean)


def test_a_loss_of_power_between_two_files_leaves_each_whole(clean, broken, monkeypatch):
    words, comparison, _ = found(broken, clean)
    replace, done = Path.replace, []

    def once(path, target):
        if done:
            raise KeyboardInterrupt
        done.append(target.name)
        return replace(path, target)

    before = contents(broken)
    with monkeypatch.context() as dying:
        dying.setattr(Path, "replace", once)
        with pytest.raises(KeyboardInterrupt):
            repair_files(words, comparison.located, digests(clean))
    for name, data in contents(broken).items():
        assert data == (contents(clean) if name in done else before)[name]
    words, comparison, _ = found(broken, clean)
    repair_files(words, comparison.located, digests(clean))
    assert contents(broken) == contents(clean)


def test_a_file_that_is_not_clean_after_repair_is_not_replaced(clean, broken):
    words, comparison, _ = found(broken, clean)
    flip_word(words, "model.norm.weight", 0, 0, 1)
    before = contents(broken)
    with pytest.raises(InputError, match=r"model\.safetensors with the words put back is still not the clean file"):
        repair_files(words, comparison.located, digests(clean))
    assert contents(broken) == before


def test_nothing_behind_a_tensor_is_written(tmp_path):
    """The last word of a tensor of an odd size is one byte of the file."""
    (tmp_path / "x").write_bytes(bytes(range(1, 9)))
    tensor = TensorWords("odd", "I8", (3,), 3, 1, 2, 2, (Extent("x", 1, 3),))
    words = FileWords(tmp_path, {"x": 8}, (tensor,))
    changes = word_changes(tensor, np.array([0]), np.array([1]), np.array([4]), np.array([9]))
    patch_files(words, Located((changes,), ()))
    assert (tmp_path / "x").read_bytes() == bytes([1, 2, 3, 9, 5, 6, 7, 8])


def test_ambiguous_tensors_are_refused(clean, broken):
    words, comparison, _ = found(broken, clean)
    unsure = Located(comparison.located.changes, (Ambiguous(words.tensors[3], (1,), (2,), "why"),))
    with pytest.raises(InputError, match="can't be told"):
        repair_files(words, unsure, digests(clean))
    with pytest.raises(InputError, match="can't be told"):
        repair_module(tiny_model("llama"), unsure)


def test_another_model_is_no_reference(clean, tmp_path):
    other = save_tiny(tmp_path / "other", "llama", torch.bfloat16, rms_norm_eps=1e-5)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(4000)
        file.write(os.urandom((other / "model.safetensors").stat().st_size - 4000))
    words, comparison, reference = found(other, clean)
    with pytest.raises(InputError, match="it is another model"):
        restore_files(words, comparison, reference)
    (other / "config.json").write_text("{}")
    with pytest.raises(InputError, match="other tensors or other files"):
        restore_files(*found(other, clean))
