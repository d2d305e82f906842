"""What the scripts say about prompts and settings alike."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def plain(content: Any) -> Any:
    """What JSON can hold of some settings; words for all else."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple | set | frozenset):
        return [plain(value) for value in content]
    return content if content is None or isinstance(content, str | int | float | bool) else str(content)


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def rendered(tokenizer: Any, prompt: Any) -> dict[str, Any]:
    """A prompt's `text` after the template, if it is one, and its ids as `prompt`, by a tokenizer of transformers."""
    if is_chat(prompt):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)
        return {"text": text, "prompt": list(ids["input_ids"])}
    if isinstance(prompt, str):
        return {"text": prompt, "prompt": list(tokenizer(prompt)["input_ids"])}
    return {"text": None, "prompt": list(prompt)}


def end_tokens(folder: Path) -> frozenset[int]:
    """The tokens that end an answer, by what lies beside a model."""
    for content in _configurations(folder):
        ends = content.get("eos_token_id", content.get("model", {}).get("eos_token_id"))
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()


def head_size(folder: Path) -> int:
    """Channels of an attention head, by what lies beside a model. Raises ValueError where nothing tells."""
    for content in _configurations(folder):
        decoder = content.get("model", {}).get("decoder", content)
        size = decoder.get("head_size") or decoder.get("head_dim")
        if size or "num_attention_heads" in decoder:
            return int(size or decoder["hidden_size"] // decoder["num_attention_heads"])
    raise ValueError(f"{folder} has no configuration that tells the size of a head: put config.json there")


def longest_text(folder: Path) -> int | None:
    """The tokens that a model takes at most, by its configuration; None where that does not tell."""
    for content in _configurations(folder):
        text = content.get("text_config", content)
        found = text.get("max_position_embeddings", text.get("n_positions"))
        if found is not None:
            return int(found)
    return None


def _configurations(folder: Path) -> Iterator[dict[str, Any]]:
    for name in ("genai_config.json", "generation_config.json", "config.json"):
        if (folder / name).exists():
            yield json.loads((folder / name).read_text(encoding="utf-8"))
