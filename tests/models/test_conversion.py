import gguf
import numpy as np
import pytest
import torch

from aftershock.errors import InputError
from aftershock.models import load
from tiny_models import tiny_model

HEADS, KEY_HEADS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def gguf_name(name):
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def interleaved(weight, heads):
    """GGUF keeps the two halves of each head's rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, quantised="model.layers.0.mlp.up_proj.weight"):
    """A tiny Llama as GGUF, one tensor in Q4_1 blocks; returns its weights as they are after dequantisation."""
    module = tiny_model("llama", vocab_size=64)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<pad>", "<eos>", *(chr(33 + code) for code in range(61)), "!!"])
    writer.add_token_types([3, 3] + [1] * 62)
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    expected = {}
    for name, parameter in module.named_parameters():
        values = parameter.numpy()
        expected[name] = values
        if name == quantised:
            blocks = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1)
            expected[name] = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            continue
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, HEADS if "q_proj" in name else KEY_HEADS)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(folder))
    return folder


def test_a_gguf_file_gives_its_dequantised_values_and_is_converted_once(tmp_path, cache):
    expected = write_gguf(tmp_path / "tiny.gguf")
    said = []
    model = load(str(tmp_path / "tiny.gguf"), progress=said.append)
    assert len(said) == 1
    for name, parameter in model.module.named_parameters():
        assert np.array_equal(parameter.numpy(), expected[name]), name
    assert model.tokenizer("!#")["input_ids"] == [2, 4]
    (tmp_path / "tiny.gguf").rename(tmp_path / "moved.gguf")
    again = load(str(tmp_path / "moved.gguf"), "bfloat16", progress=said.append)
    assert len(said) == 1
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
    with pytest.raises(InputError, match=r"tiny\.gguf cannot be read as a GGUF model") as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert not (cache / "converted").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(InputError, match=r"occupied.* cannot be written .*AFTERSHOCK_CACHE"):
        load(str(tmp_path / "tiny.gguf"))
