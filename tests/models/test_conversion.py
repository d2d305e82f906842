import gguf
import numpy as np
import pytest
import torch

from aftershock.errors import InputError
from aftershock.models import load
from tiny_gguf import write_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(folder))
    return folder


def test_a_gguf_file_gives_its_dequantised_values_and_is_converted_once(tmp_path, cache):
    expected = write_gguf(tmp_path / "tiny.gguf")
    said = []
    model = load(str(tmp_path / "tiny.gguf"), progress=said.append)
    assert [line.split()[0] for line in said] == ["converting", "indexing"]
    for name, parameter in model.module.named_parameters():
        assert np.array_equal(parameter.numpy(), expected[name]), name
    assert model.tokenizer("!#")["input_ids"] == [2, 4]
    (tmp_path / "tiny.gguf").rename(tmp_path / "moved.gguf")
    again = load(str(tmp_path / "moved.gguf"), "bfloat16", progress=said.append)
    assert len(said) == 2
    assert torch.equal(again.module.lm_head.weight, model.module.lm_head.weight.bfloat16())
    assert len(list((cache / "converted").iterdir())) == 1


def test_transformers_is_left_as_it_was(tmp_path, cache):
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    write_gguf(tmp_path / "tiny.gguf")
    load(str(tmp_path / "tiny.gguf"))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_a_conversion_that_is_killed_leaves_nothing(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    from transformers import PreTrainedTokenizerBase

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        load(str(tmp_path / "tiny.gguf"))
    assert list((cache / "converted").iterdir()) == []


@pytest.mark.parametrize("kept", [0, 3, 40, 700, 0.5, 0.999])
def test_a_cut_gguf_file_is_named(tmp_path, cache, kept):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    said = r"tiny\.gguf cannot be read as a GGUF model: it is damaged or cut short, get the file again$"
    with pytest.raises(InputError, match=said) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert not (cache / "converted").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(InputError, match=r"occupied.* cannot be written .*AFTERSHOCK_CACHE"):
        load(str(tmp_path / "tiny.gguf"))
