"""Prompts: the built-in ones, and the token ids that the reference's tokenizer has for those that were asked."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from aftershock.capture import Prompt, Request
from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.tasks import probe_items

BLOCK = 32
"""Tokens that a block of a paged cache holds at least, on the engines known."""

LONGEST = 1536
"""Tokens that the longest built-in prompt has at most, windows or not."""

_TEXTS = (
    "The capital of France is",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([3, 1, 4, 1, 5]))\n#",
    "3, 14, 15, 92, 65: their sum is 189, the largest is 92, and the smallest is",
    "La ville s'endort sous la neige, et les trains du soir partent en retard vers",
)


@dataclass(frozen=True)
class Expected:
    """What a request should have been fed: `ids`, and `plain`, the same without the template's generation prompt (None
    where the prompt is no chat). `text` is what the ids were made from."""

    ids: tuple[int, ...]
    plain: tuple[int, ...] | None = None
    text: str | None = None


def default_prompts(model: LoadedModel) -> tuple[Prompt, ...]:
    """Prompts of several kinds and lengths: beyond two blocks of a cache, beyond the model's window where it has one of
    no more than `LONGEST` tokens, and a chat where the model has a template."""
    config: Any = model.module.config
    window = getattr(config, "sliding_window", None) or 0
    room = min(LONGEST, config.max_position_embeddings - BLOCK)
    longest = min(max(3 * BLOCK, window + BLOCK), room) if window + BLOCK <= LONGEST else 3 * BLOCK
    return tuple(_prompts(model.tokenizer, longest))


def _prompts(tokenizer: Any, longest: int) -> Iterator[Prompt]:
    yield from _TEXTS
    words = " ".join(item.contexts[0] for item in probe_items()).split(" ")
    for length in (BLOCK + 3, longest):
        # A word has one token at least.
        counts = range(1, length + 1)
        place = bisect_left(counts, length, key=lambda count: len(tokenizer(_cycled(words, count))["input_ids"]))
        yield _cycled(words, counts[min(place, length - 1)])
    if getattr(tokenizer, "chat_template", None):
        yield ({"role": "user", "content": "Name three rivers of Europe, and the seas that they reach."},)


def _cycled(words: list[str], count: int) -> str:
    return " ".join(words[place % len(words)] for place in range(count))


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is a list of messages."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)


def expected(tokenizer: Any, prompt: Prompt | None, request: Request) -> Expected | None:
    """What the reference feeds for a prompt, or, where none is given, for the text that the target says it read; None
    where there is neither, or no tokenizer to ask.

    Raises InputError for messages that the tokenizer has no template for.
    """
    if prompt is not None and not isinstance(prompt, str) and not is_chat(prompt):
        return Expected(tuple(token for token in prompt if isinstance(token, int)))
    if tokenizer is None:
        return None
    if prompt is None:
        if request.text is None:
            return None
        # A text that a template made has its special tokens already.
        begun = tokenizer.bos_token is not None and request.text.startswith(tokenizer.bos_token)
        ids = tokenizer(request.text, add_special_tokens=not begun)["input_ids"]
        return Expected(tuple(ids), text=request.text)
    if isinstance(prompt, str):
        return Expected(tuple(tokenizer(prompt)["input_ids"]), text=prompt)
    return _chat(tokenizer, prompt)


def check_order(requests: Sequence[Request], wanted: Sequence[Expected | None]) -> None:
    """Raise InputError where a request reads the ids of another one's prompt."""
    places = {own.ids: place for place, own in enumerate(wanted) if own is not None}
    for request, own in zip(requests, wanted, strict=True):
        read = request.tokens[: request.prompt_tokens]
        if own is not None and read != own.ids and read in places:
            raise InputError(
                f"request {request.id} has read what is prompt {places[read]} of those given (from 0): give them "
                "in the order of the bundle's requests"
            )


def _chat(tokenizer: Any, messages: Any) -> Expected:
    """What a chat should have been fed. Raises InputError where the tokenizer makes nothing of it."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the reference's tokenizer has no chat template for prompts that are messages: give texts or token ids, or "
            "a reference that has one"
        )
    try:
        return Expected(
            ids=_rendered(tokenizer, messages, add_generation_prompt=True),
            plain=_rendered(tokenizer, messages, add_generation_prompt=False),
            text=tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True),
        )
    except TemplateError as error:
        raise InputError(
            f"the reference's chat template refuses a prompt ({error}): write its messages as the template wants them"
        ) from error


def _rendered(tokenizer: Any, messages: Any, *, add_generation_prompt: bool) -> tuple[int, ...]:
    found = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True
    )
    return tuple(found["input_ids"])
