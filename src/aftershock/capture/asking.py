"""What an engine is asked to run and record."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aftershock.errors import InputError

Message = dict[str, str]
"""A turn of a conversation: `role` and `content`."""

Prompt = str | tuple[int, ...] | tuple[Message, ...]
"""A text, token ids, or messages that the engine's own template makes a text of."""

Batching = Literal["one_by_one", "together"]


class CaptureRequest(BaseModel):
    """What is run and recorded: the file that a capturing script reads.

    `model` is a path. `record` are patterns (`*.mlp.*`, `q`) for modules and components; all, where there are none.
    `options` are the engine's own (docs/engines.md), `cache` is a folder for what an engine converts once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    max_new_tokens: int = Field(default=1, ge=1)
    dtype: str = "float32"
    batching: Batching = "one_by_one"
    threads: int = Field(default=1, ge=1)
    record: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)
    cache: str = "."


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts in a file: each line of a .txt file, or each line's JSON of a .jsonl file, which is a text, a list of
    token ids, or a list of messages.

    Raises InputError for a file that can't be read, holds no prompt, or a line that is none of these.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts {path} can't be read ({error}): give a .txt or .jsonl file") from error
    if not lines:
        raise InputError(f"{path} holds no prompt: write one a line")
    if path.suffix != ".jsonl":
        return tuple(lines)
    return tuple(_prompt(line, f"{path}, line {number}") for number, line in enumerate(lines, 1))


def _prompt(line: str, where: str) -> Prompt:
    try:
        prompt = json.loads(line)
        found = CaptureRequest(model="", prompts=(prompt,)).prompts[0]
    except (ValueError, RecursionError, ValidationError):
        found = ()
    turns = [turn for turn in found if isinstance(turn, dict)]
    if not found or any(not turn.keys() >= {"role", "content"} for turn in turns):
        raise InputError(f"{where} is no prompt: write a JSON string, a list of token ids, or a list of messages")
    return found
