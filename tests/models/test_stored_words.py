"""The packed words that weights come from."""

import numpy as np
import pytest
import torch

from aftershock.errors import InputError
from aftershock.models import load
from aftershock.numerics import STORAGE
from tiny_gguf import write_gguf
from tiny_models import save_tiny

EVERY = "proj|embed|lm_head"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q4_0"])
def test_rows_of_a_file_are_the_parameters_rows(tmp_path, kind, dtype):
    write_gguf(tmp_path / "tiny.gguf", EVERY, kind)
    model = load(str(tmp_path / "tiny.gguf"), dtype)
    names = {site.name for site in model.components.stored}
    assert names == {name for name, parameter in model.module.named_parameters() if parameter.dim() == 2}
    for share in model.components.parameters:
        if share.name in names:
            tensor = model.stored.tensor(share)
            values = np.stack([tensor.row(row).values() for row in range(share.shape[0])])
            parameter = model.module.get_parameter(share.name)
            assert torch.equal(torch.from_numpy(values).to(parameter.dtype), parameter), share.name


def test_a_tensor_that_is_not_packed_is_not_listed(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    model = load(str(tmp_path / "tiny.gguf"))
    assert {(site.name, site.field) for site in model.components.stored} == {
        ("model.layers.0.mlp.up_proj.weight", field) for field in ("quant", "scale", "min")
    }
    quant, scale, _ = model.components.stored
    assert (quant.rows, quant.words, quant.bits, quant.component, quant.layer) == (64, 32, 4, "up", 0)
    assert (scale.words, scale.bits, scale.shape, scale.numel) == (1, 16, (64, 1, 16), 1024)
    assert (quant.bit_class(3), scale.bit_class(14)) == ("quant", "scale exponent")


def test_the_index_is_made_once(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", EVERY)
    said: list[str] = []
    load(str(tmp_path / "tiny.gguf"), progress=said.append)
    load(str(tmp_path / "tiny.gguf"), progress=said.append)
    assert [line.split()[0] for line in said] == ["converting", "indexing"]


@pytest.mark.parametrize("storage", ["int8", "int4", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "mixtral"])
def test_weights_rounded_to_a_format_are_what_their_words_stand_for(tmp_path, family, storage):
    save_tiny(tmp_path / family, family)
    plain = load(str(tmp_path / family))
    model = load(str(tmp_path / family), "bfloat16", storage=storage)
    assert plain.components.stored == ()
    rounded = {site.name for site in model.components.stored}
    for name, parameter in model.module.named_parameters():
        before = plain.module.get_parameter(name)
        share = next(share for share in model.components.parameters if share.name == name)
        if share.layer is None or parameter.dim() < 2 or share.component == "router":
            assert name not in rounded
            assert torch.equal(parameter, before.bfloat16())
            continue
        tensor = model.stored.tensor(share)
        rows = parameter.T if share.dim == 1 else parameter.flatten(0, -2)
        values = np.stack([tensor.row(row).values() for row in range(len(rows))])
        assert torch.equal(torch.from_numpy(values).bfloat16(), rows)
        for row, column in ((0, 1), (len(rows) - 1, 3)):
            assert parameter[tensor.element(row, column)] == rows[row, column]
        close = {"int8": 0.01, "int4": 0.1, "fp8_e4m3": 0.08, "fp8_e5m2": 0.15}[storage]
        assert (parameter.float() - before).abs().max() <= close * before.abs().max()


def test_every_storage_loads_and_runs(tmp_path):
    save_tiny(tmp_path / "model", "llama", intermediate_size=64)
    ids = torch.tensor([[5, 6, 7]])
    clean = load(str(tmp_path / "model")).module(input_ids=ids).logits
    for storage in STORAGE:
        logits = load(str(tmp_path / "model"), storage=storage).module(input_ids=ids).logits
        assert not torch.equal(logits, clean)
        assert torch.nn.functional.cosine_similarity(logits.flatten(), clean.flatten(), dim=0) > 0.9


def test_rows_that_blocks_do_not_fill_are_refused(tmp_path):
    save_tiny(tmp_path / "model", "llama")
    with pytest.raises(InputError, match="rows of 48 values don't fill q4_0 blocks of 32"):
        load(str(tmp_path / "model"), storage="q4_0")
