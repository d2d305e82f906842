"""A tiny random Llama as a GGUF file."""

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch

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


def gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of each head's rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    quantised: str = r"model\.layers\.0\.mlp\.up_proj",
    kind: str = "Q4_1",
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, np.ndarray]:
    """A tiny Llama as GGUF, random or with some weights, the matrices that match `quantised` in blocks of a kind; its
    weights as they are after dequantisation."""
    module = tiny_model("llama", vocab_size=64, intermediate_size=64)
    if weights is not None:
        module.load_state_dict(weights)
    packed = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
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
        heads = HEADS if "q_proj" in name else KEY_HEADS if "k_proj" in name else None
        written = values if heads is None else interleaved(values, heads)
        if values.ndim == 2 and re.search(quantised, name):
            # Rows are quantised one by one, so their order does not matter.
            expected[name] = gguf.dequantize(gguf.quantize(values, packed), packed)
            writer.add_tensor(gguf_name(name), gguf.quantize(written, packed), raw_dtype=packed)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(written))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
