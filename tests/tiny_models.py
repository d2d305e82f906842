"""Tiny random models of every supported family, made in code: two layers, 32 channels, 100 tokens.

The tokenizer has one token per printable ASCII character, so a text's tokens are its characters and any
generated token can be told from any other in the text.
"""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from aftershock.models import LoadedModel, component_map
from aftershock.numerics import generator

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"

_TOKENS: dict[str, Any] = {
    "vocab_size": len(SPECIAL_TOKENS) + len(CHARACTERS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DECODER: dict[str, Any] = {
    **_TOKENS,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_GEMMA: dict[str, Any] = {**_DECODER, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_DECODER, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_DECODER, "sliding_window": None}),
    "qwen2": ("qwen2", _DECODER),
    "qwen3": ("qwen3", _DECODER),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("phi3", _DECODER),
    "opt": ("opt", {**_DECODER, "ffn_dim": 48}),
    "gpt2": ("gpt2", {**_TOKENS, "n_layer": 2, "n_embd": 32, "n_inner": 48, "n_head": 4, "n_positions": 512}),
    "gpt_neox": ("gpt_neox", _DECODER),
    "mixtral": ("mixtral", {**_DECODER, "num_local_experts": 4, "sliding_window": None}),
    "qwen2_moe": ("qwen2_moe", {**_DECODER, **_EXPERTS, "shared_expert_intermediate_size": 20}),
    "qwen3_moe": ("qwen3_moe", {**_DECODER, **_EXPERTS}),
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> torch.nn.Module:
    """A tiny random model; the same family and configuration overrides always give the same weights."""
    model_type, settings = _CONFIGS[family]
    config = CONFIG_MAPPING[model_type](**{**settings, **overrides})
    with torch.random.fork_rng(devices=[]):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(module.named_parameters()):
            values = generator(0, index, "tiny model").standard_normal(tuple(parameter.shape))
            centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.copy_(torch.from_numpy(centre + 0.25 * values))
    return module.eval().requires_grad_(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; anything else is `<unk>`. Pads on the left."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, bos, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_loaded(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> LoadedModel:
    """What `load` gives for a tiny model, without a file in between."""
    module = tiny_model(family, dtype, **overrides)
    return LoadedModel(
        module=module,
        tokenizer=tiny_tokenizer(),
        spec=f"tiny:{family}",
        dtype=dtype,
        device=torch.device("cpu"),
        components=component_map(module),
    )


def save_tiny(path: Path, family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """Write a tiny model and its tokenizer as a safetensors folder; returns the folder."""
    tiny_model(family, dtype, **overrides).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
