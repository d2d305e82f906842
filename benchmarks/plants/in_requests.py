"""Errors in what is asked, in how tokens are chosen, and where answers end: they change the target, not the model."""

from dataclasses import replace
from typing import Any

from benchmarks.plants.targets import Target


def repeat_first(target: Target) -> Target:
    """The first token twice: a template writes BOS, and the tokenizer another one."""
    return replace(target, prompts=tuple((prompt[0], *prompt) for prompt in target.prompts))


def drop_first(target: Target) -> Target:
    """No BOS."""
    return replace(target, prompts=tuple(prompt[1:] for prompt in target.prompts))


def drop_last(target: Target) -> Target:
    """No EOS, or whatever ends the prompts."""
    return replace(target, prompts=tuple(prompt[:-1] for prompt in target.prompts))


def append(target: Target, tokens: tuple[int, ...]) -> Target:
    """Tokens too many at the end."""
    return replace(target, prompts=tuple((*prompt, *tokens) for prompt in target.prompts))


def keep_last(target: Target, tokens: int) -> Target:
    """Long prompts lose what is before their last tokens."""
    return replace(target, prompts=tuple(prompt[-tokens:] for prompt in target.prompts))


def keep_first(target: Target, tokens: int) -> Target:
    """Long prompts lose their end."""
    return replace(target, prompts=tuple(prompt[:tokens] for prompt in target.prompts))


def raise_ids(target: Target, first: int, by: int) -> Target:
    """Ids from `first` on are larger by a constant: a vocabulary with tokens added elsewhere."""
    model: Any = target.module
    size: int = model.get_input_embeddings().weight.shape[0]

    def raised(token: int) -> int:
        return min(token + by, size - 1) if token >= first else token

    return replace(target, prompts=tuple(tuple(map(raised, prompt)) for prompt in target.prompts))


def render_chats(target: Target, **settings: Any) -> Target:
    """Chats pass through the template with other settings (`add_generation_prompt`, `chat_template`)."""
    tokenizer = target.model.tokenizer
    rendered = (
        tokenizer.apply_chat_template(list(chat), **{"add_generation_prompt": True, **settings})["input_ids"]
        for chat in target.chats
    )
    return replace(target, prompts=tuple(map(tuple, rendered)))


def without_template(target: Target) -> Target:
    """The last message's text as it is, no template around it."""
    texts = (chat[-1]["content"] for chat in target.chats)
    return replace(target, prompts=tuple(tuple(target.model.tokenizer(text)["input_ids"]) for text in texts))


def sample_with(target: Target, **settings: Any) -> Target:
    """Other sampling settings (fields of `Sampling`)."""
    return replace(target, sampling=replace(target.sampling, **settings))


def run_with(target: Target, **circumstances: Any) -> Target:
    """Other circumstances (`together`, `threads`), which are no error."""
    return replace(target, **circumstances)
