"""Two models compared word by word."""

import shutil

import numpy as np
import pytest
import torch
from flipped import flip_byte
from safetensors.torch import load_file, save_file

from aftershock.errors import InputError
from aftershock.locate import MOST_LISTED, locate_by_words, suspect_words
from aftershock.models import file_words, live_words
from tiny_gguf import write_gguf
from tiny_models import save_tiny, tiny_model


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with a tiny bf16 model, its weights in two shards; not to be changed."""
    folder = save_tiny(tmp_path_factory.mktemp("clean") / "model", "llama", torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for number, some in enumerate((names[:9], names[9:]), 1):
        save_file({name: tensors[name] for name in some}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def suspect(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "suspect")


def test_equal_models_are_equal(clean, suspect):
    comparison = locate_by_words(file_words(str(suspect)), file_words(str(clean)))
    assert comparison.equal
    assert comparison.comparable
    assert comparison.located.clean
    assert comparison.compared == len(file_words(str(clean)).tensors)


def test_every_differing_word_is_listed_with_both_words(clean, suspect):
    words = file_words(str(suspect))
    tensor = next(one for one in words.tensors if one.name == "model.layers.1.mlp.up_proj.weight")
    for row, column, mask in ((tensor.rows - 1, 3, 0x80), (2, 0, 0x41)):
        name, offset = tensor.place(row, column)
        flip_byte(suspect / name, offset + 1, mask)
    comparison = locate_by_words(words, file_words(str(clean)))
    assert comparison.differing == {tensor.name: 2}
    (changes,) = comparison.located.changes
    assert (changes.rows.tolist(), changes.columns.tolist()) == ([2, tensor.rows - 1], [0, 3])
    assert changes.bits == ((8, 14), (15,))
    assert np.array_equal(changes.found ^ changes.clean, [0x4100, 0x8000])
    assert not comparison.equal
    assert comparison.comparable


def test_a_header_and_a_settings_file_are_words_too(clean, suspect):
    shard = next(iter(sorted(suspect.glob("*.safetensors"))))
    flip_byte(shard, 20, 0x20)  # within a tensor's name
    flip_byte(suspect / "config.json", 3, 0x01)
    reference = file_words(str(clean))
    comparison = locate_by_words(suspect_words(str(suspect), reference), reference)
    assert comparison.differing == {f"{shard.name}: header": 1, "config.json": 1}


def test_a_header_that_cannot_be_parsed_is_read_as_the_references(clean, suspect):
    shard = next(iter(sorted(suspect.glob("*.safetensors"))))
    flip_byte(shard, 6, 0x40)  # the header's length: it would be 2^54 bytes longer
    with pytest.raises(InputError):
        file_words(str(suspect))
    reference = file_words(str(clean))
    comparison = locate_by_words(suspect_words(str(suspect), reference), reference)
    assert comparison.differing == {f"{shard.name}: header": 1}


def test_the_name_of_a_models_only_file_does_not_count(tmp_path):
    write_gguf(tmp_path / "clean.gguf")
    shutil.copy(tmp_path / "clean.gguf", tmp_path / "broken.gguf")
    flip_byte(tmp_path / "broken.gguf", 9, 0x02)  # the number of tensors
    reference = file_words(str(tmp_path / "clean.gguf"))
    comparison = locate_by_words(suspect_words(str(tmp_path / "broken.gguf"), reference), reference)
    assert comparison.differing == {"broken.gguf: header": 1}
    assert comparison.located.changes[0].tensor.extents[0].file == "broken.gguf"


def test_files_of_other_sizes_are_read_as_they_are(clean, suspect):
    (suspect / "config.json").write_text("{}")
    reference = file_words(str(clean))
    words = suspect_words(str(suspect), reference)
    assert words == file_words(str(suspect))
    comparison = locate_by_words(words, reference)
    assert comparison.reshaped == ("config.json",)
    with pytest.raises(InputError, match="does not exist"):
        suspect_words(str(suspect / "nothing.gguf"), reference)


def test_what_cannot_be_compared_is_named(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "changed")
    shard = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    first, second, third, *_ = (name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors["other"] = tensors.pop(first)
    tensors[second] = tensors[second].T.contiguous()[:-1]
    tensors[third] = tensors[third].half()
    save_file(tensors, shard)
    comparison = locate_by_words(file_words(str(folder)), file_words(str(clean)))
    assert comparison.missing == (first,)
    assert comparison.extra == ("other",)
    assert second in comparison.reshaped
    assert comparison.retyped == (third,)
    assert not comparison.comparable


def test_a_live_module_is_compared_with_its_file(clean):
    module = tiny_model("llama", torch.bfloat16)
    words = live_words(module)
    comparison = locate_by_words(words, file_words(str(clean)))
    assert not comparison.differing
    with torch.no_grad():
        module.model.norm.weight[3] = float("nan")
        module.model.layers[0].mlp.down_proj.weight[2, 5] *= -1
    differing = locate_by_words(words, file_words(str(clean))).differing
    assert differing == {"model.norm.weight": 1, "model.layers.0.mlp.down_proj.weight": 1}
    assert locate_by_words(words, words).equal  # NaN is equal to itself


@pytest.mark.parametrize("part", [1 << 26, 30_000])
def test_of_many_differing_words_the_first_are_listed(monkeypatch, part):
    """However many parts the tensor is read in."""
    monkeypatch.setattr("aftershock.models.words._PART", part)
    one, other = torch.nn.Linear(200, 200, bias=False), torch.nn.Linear(200, 200, bias=False)
    with torch.no_grad():
        one.weight.fill_(1)
        other.weight.fill_(-1)
    comparison = locate_by_words(live_words(one), live_words(other))
    assert comparison.differing == {"weight": 40_000}
    (changes,) = comparison.located.changes
    assert len(changes) == MOST_LISTED
    assert changes.rows.max() == MOST_LISTED // 200 - 1


def test_models_without_a_common_tensor_are_refused():
    with pytest.raises(InputError, match="different models"):
        locate_by_words(live_words(torch.nn.Linear(2, 2)), live_words(torch.nn.Sequential(torch.nn.Linear(2, 2))))


def test_tensors_that_are_all_of_other_shapes_are_another_models():
    one, other = live_words(torch.nn.Linear(2, 3)), live_words(torch.nn.Linear(4, 5))
    with pytest.raises(InputError, match="no tensor that both have is alike in shape and type"):
        locate_by_words(one, other)
    one, other = (live_words(torch.nn.Linear(2, width, bias=False)) for width in (3, 4))
    assert locate_by_words(one, other).reshaped == ("weight",)


def test_a_shard_that_was_added_is_extra(clean, suspect):
    save_file({"more": torch.ones(3)}, suspect / "more.safetensors")
    reference = file_words(str(clean))
    comparison = locate_by_words(suspect_words(str(suspect), reference), reference)
    assert comparison.extra == ("more", "more.safetensors: header")


def test_a_folder_of_two_models_is_refused(tmp_path):
    """One of two tensors of a name would be compared, and the other be called clean."""
    save_file({"weight": torch.ones(4)}, tmp_path / "model.safetensors")
    one = file_words(str(tmp_path / "model.safetensors"))
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "zz.safetensors")
    both = file_words(str(tmp_path))
    for suspect, reference in ((both, one), (one, both)):
        with pytest.raises(InputError, match="both hold a tensor weight"):
            locate_by_words(suspect, reference)


def test_empty_tensors_are_equal():
    module = torch.nn.ParameterDict({"weight": torch.empty(0, 3), "bias": torch.ones(3)})
    assert locate_by_words(live_words(module), live_words(module)).equal
