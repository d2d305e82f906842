import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from aftershock.errors import InputError
from aftershock.models import component_map, demo_models, load
from aftershock.models.cache import cache_folder
from tiny_models import save_tiny, tiny_loaded, tiny_model

IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = (IDS != 0).long()


def logits(module):
    with torch.inference_mode():
        return module(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_are_those_of_transformers_itself(tmp_path, family, dtype):
    folder = save_tiny(tmp_path / family, family)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = load(str(folder), dtype)
    assert torch.equal(logits(model.module), logits(plain))


def test_a_loaded_model_is_frozen_evaluating_and_described(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    model = load(str(folder), torch.bfloat16)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert (model.spec, model.dtype, model.device) == (str(folder), torch.bfloat16, torch.device("cpu"))
    assert model.format.name == "bfloat16"
    assert model.components == component_map(model.module)
    assert model.tokenizer.decode(model.tokenizer("Two  words\n")["input_ids"]) == "Two  words\n"


def test_a_tiny_model_in_memory_equals_the_one_from_its_folder(tmp_path):
    made, read = tiny_loaded("qwen3"), load(str(save_tiny(tmp_path / "qwen3", "qwen3")))
    assert made.components == read.components
    assert torch.equal(logits(made.module), logits(read.module))


def test_weights_may_be_split_over_several_files(tmp_path):
    module = tiny_model("llama")
    folder = save_tiny(tmp_path / "llama", "llama")
    (folder / "model.safetensors").unlink()
    module.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(str(folder)).module), logits(module))
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(folder))


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def unknown_type(folder):
    change_config(folder, model_type="novel")


def other_shape(folder):
    change_config(folder, intermediate_size=64)


def quantised(folder):
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def overwritten(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 4096)


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def incomplete(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 7}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_config, r"holds no config\.json"),
        (broken_config, r"config\.json"),
        (unknown_type, r"novel.*check its config\.json"),
        (other_shape, r"cannot be loaded as a language model"),
        (quantised, r"holds quantised weights"),
        (no_weights, r"holds no \.safetensors file"),
        (pickled, r"pytorch_model\.bin, a pickle, .*convert it to safetensors"),
        (cut_short, r"model\.safetensors is damaged or cut short"),
        (overwritten, r"model\.safetensors is damaged or cut short"),
        (empty, r"model\.safetensors is damaged or cut short"),
        (incomplete, r"lacks 1 of the model's tensors, model\.layers\.1\.mlp\.up_proj\.weight"),
        (no_tokenizer, r"holds no readable tokenizer"),
        (broken_tokenizer, r"holds no readable tokenizer"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, damage, says):
    folder = save_tiny(tmp_path / "llama", "llama")
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("/no/such/folder", r"model /no/such/folder does not exist: give demo:NAME"),
        ("missing.gguf", r"missing\.gguf does not exist"),
        ("models/missing.gguf", r"models/missing\.gguf does not exist"),
        ("demo:gpt5", r"'gpt5' does not exist: choose one of"),
        ("organisation/no-such-model", r"neither a folder here nor available from the model hub"),
        (__file__, r"is a file but no \.gguf"),
    ],
)
def test_a_missing_model_is_one_sentence(monkeypatch, spec, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=says) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, r"dtype 'int8' is not supported"),
        ({"dtype": torch.float64}, r"dtype 'float64' is not supported"),
        ({"device": "tpu"}, r"device 'tpu' is not supported"),
        ({"device": "cuda:-1"}, r"device 'cuda:-1' is not supported"),
        ({"device": "cuda:4096"}, r"device cuda:4096 is not here"),
    ],
)
def test_dtype_and_device_are_checked(tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        load(str(tmp_path), **options)


def test_nothing_in_the_folder_is_run(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    trace = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass M: ...\n"
    (folder / "modeling_novel.py").write_text(code)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(trace.touch))
    change_config(
        folder,
        auto_map={"AutoConfig": "modeling_novel.M", "AutoModelForCausalLM": "modeling_novel.M"},
        attn_implementation="organisation/kernel",
    )
    model = load(str(folder))
    assert model.module.config._attn_implementation == "sdpa"
    assert not trace.exists()


def test_the_users_logging_is_left_as_it_was(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        load(str(folder))
        with pytest.raises(InputError):
            load("/no/such/folder")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])


def test_loading_says_nothing(tmp_path, capfd):
    folder = save_tiny(tmp_path / "llama", "llama")
    capfd.readouterr()
    load(str(folder))
    assert capfd.readouterr() == ("", "")


def test_the_demo_model_equals_plain_transformers():
    demo = demo_models()[0]
    converted = next((cache_folder() / "converted").glob(demo.sha256), None)
    if converted is None:
        pytest.skip("demo:smollm2-135m is not in the cache; get it with `aftershock models pull smollm2-135m`")
    if not (cache_folder() / "demo" / f"{demo.name}.gguf").is_file():
        pytest.skip("demo:smollm2-135m is converted, but its GGUF file is no longer in the cache")
    model = load(f"demo:{demo.name}")
    plain = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    assert model.components.layers == 30
    assert torch.equal(logits(model.module), logits(plain))
