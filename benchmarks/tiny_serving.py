"""Tiny random models that every engine can serve, for errors to be planted in.

    python -m benchmarks.tiny_serving FAMILY FOLDER

Six layers, grouped queries, heads of 32 channels (the least that vLLM takes on a CPU), words that are exact in
bfloat16. Weights are wide enough for attention to look at few tokens, and the gains of norms vary: on the narrow
weights that a library draws, most errors leave no trace. Sliding windows hold 16 tokens.
"""

import argparse
import math
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from aftershock.errors import InputError
from aftershock.models import LoadedModel, component_map
from aftershock.numerics import generator

WINDOW = 16
"""Tokens that a sliding layer sees."""

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>")
_CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_TOKENS: dict[str, Any] = {"vocab_size": 144, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER: dict[str, Any] = {
    **_TOKENS,
    "num_hidden_layers": 6,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * 3
_FIVE_TO_ONE = ["sliding_attention"] * 5 + ["full_attention"]
_GEMMA: dict[str, Any] = {
    **_DECODER,
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
}
_SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 64,
}
_MIXTURE: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _DECODER),
    # As many words as channels of queries: what one exporter takes for the head.
    "llama-wide-queries": ("llama", {**_DECODER, "vocab_size": 128}),
    "llama-scaled": ("llama", {**_DECODER, "rope_parameters": _SCALED}),
    "mistral": ("mistral", {**_DECODER, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", _DECODER),
    "qwen3": ("qwen3", _DECODER),
    "gemma2": ("gemma2", {**_GEMMA, "layer_types": _ALTERNATING}),
    "gemma3": ("gemma3_text", {**_GEMMA, "layer_types": _FIVE_TO_ONE}),
    "phi3": ("phi3", {**_DECODER, "sliding_window": None}),
    "mixtral": ("mixtral", {**_DECODER, **_MIXTURE}),
    "qwen2-moe": ("qwen2_moe", {**_DECODER, **_EXPERTS}),
    "gpt2": ("gpt2", {**_TOKENS, "n_layer": 6, "n_embd": 96, "n_inner": 160, "n_head": 3, "n_positions": 512}),
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_config(family: str, **overrides: Any) -> Any:
    """The family's transformers configuration. Raises InputError for a family that is not one of `FAMILIES`."""
    if family not in _CONFIGS:
        raise InputError(f"there is no tiny model of {family}: give one of {', '.join(FAMILIES)}")
    model_type, settings = _CONFIGS[family]
    return CONFIG_MAPPING[model_type](**{**settings, **overrides})


def tiny_module(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> torch.nn.Module:
    """The family's random model, with attention step by step; the same words on any machine, exact in bfloat16."""
    with torch.random.fork_rng(devices=[]):
        module: torch.nn.Module = AutoModelForCausalLM.from_config(
            tiny_config(family, **overrides),
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",  # the fused one knows no float64
        )
    centred_at_zero = family.startswith("gemma")
    with torch.no_grad():
        for index, (name, parameter) in enumerate(module.named_parameters()):
            drawn = generator(0, index, "tiny serving").standard_normal(tuple(parameter.shape))
            values = torch.from_numpy(drawn).to(torch.float32)
            parameter.copy_(_spread(name, values, centred_at_zero).to(torch.bfloat16))
            # Parameters alone: the frequencies of a rotation stay as wide as they are.
            parameter.data = parameter.data.to(dtype)
    return module.eval().requires_grad_(False)


def _spread(name: str, drawn: torch.Tensor, centred_at_zero: bool) -> torch.Tensor:
    """Standard normal draws, scaled as a tensor of that name wants them."""
    if drawn.dim() == 1:
        gain = name.endswith("weight") and not centred_at_zero
        return (1.0 if gain else 0.0) + 0.25 * drawn
    if "embed_tokens" in name or "wte" in name or "wpe" in name:
        return 0.2 * drawn
    # Three times what torch draws for a linear layer is 1.7 / sqrt(inputs).
    inputs = drawn.shape[-2] if ".c_" in name else drawn.shape[-1]
    sharp = any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "c_attn", "gate.weight", "q_norm", "k_norm"))
    return drawn * ((1.7 if sharp else 1.0) / math.sqrt(inputs))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, `<bos>` before a text, and a chat template that writes `<bos>` itself, as real ones do."""
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=["<user>", "<assistant>", "<end>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = _TEMPLATE
    return made


def loaded(module: torch.nn.Module, tokenizer: Any, spec: str) -> LoadedModel:
    """A module made in code, as `load` gives one from a file."""
    first = next(module.parameters())
    return LoadedModel(module, tokenizer, spec, first.dtype, first.device, component_map(module))


def tiny_loaded(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> LoadedModel:
    """`load("tiny:FAMILY")`, so to speak."""
    return loaded(tiny_module(family, dtype, **overrides), tiny_tokenizer(), f"tiny:{family}")


def save_tiny(family: str, folder: Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """Write a family's model and tokenizer as a folder of safetensors that any engine reads; returns the folder."""
    module: Any = tiny_module(family, dtype, **overrides)
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def main() -> None:
    """Write one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(save_tiny(arguments.family, arguments.folder))


if __name__ == "__main__":
    main()
