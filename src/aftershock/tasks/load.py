"""Tasks: the built-in probe set, JSONL files, plain text."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

from aftershock.errors import InputError
from aftershock.tasks.items import Item
from aftershock.tasks.jsonl import read_jsonl

CHUNK = 2000
"""Most characters of one lm item, about 500 tokens of English."""

_CHUNKS = re.compile(rf"(?s).{{500,{CHUNK - 1}}}(?:\n|\Z)|.{{500,{CHUNK - 1}}}\s|.{{1,{CHUNK}}}")


@dataclass(frozen=True)
class Task:
    """A named set of items. `digest` is a SHA-256 over the items' content, in order."""

    name: str
    items: tuple[Item, ...]
    digest: str


def load_task(spec: str, limit: int | None = None, max_new_tokens: int | None = None) -> Task:
    """The task of a spec: `probe` (the built-in set), a `.jsonl` file or a `.txt` file (language modelling).

    `limit` keeps that many items: the first ones of a file, or an even share of every group of the probe set.
    `max_new_tokens` replaces the length limit of every generation item.

    Raises InputError for a file that is absent, empty, of another type or not UTF-8, a broken line (named by
    its number), and a limit below 1.
    """
    for name, value in (("limit", limit), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: choose 1 or more")
    if spec == "probe":
        items = _spread(probe_items(), limit)
        name = spec
    else:
        items = _read(Path(spec))[:limit]
        name = Path(spec).stem
    if max_new_tokens is not None:
        items = tuple(
            replace(item, max_new_tokens=max_new_tokens) if item.kind == "generation" else item for item in items
        )
    content = json.dumps([asdict(item) for item in items], ensure_ascii=True, sort_keys=True)
    return Task(name, items, hashlib.sha256(content.encode()).hexdigest())


def probe_items() -> tuple[Item, ...]:
    """Every item of the built-in probe set: short questions in English, French and Spanish."""
    path = files("aftershock.tasks") / "probe.jsonl"
    return read_jsonl("the probe set", path.read_text(encoding="utf-8"))


def text_items(name: str, text: str) -> tuple[Item, ...]:
    """Language-modelling items that cover a text in order: chunks of up to 2,000 characters.

    Chunks end at line ends where they can, else at white space; blank ones are left out.
    """
    chunks = [chunk for chunk in _CHUNKS.findall(text) if not chunk.isspace()]
    return tuple(
        Item(id=f"{name}-{index}", kind="lm", group="lm", contexts=("",), continuations=(chunk,))
        for index, chunk in enumerate(chunks)
    )


def _read(path: Path) -> tuple[Item, ...]:
    if path.suffix not in (".jsonl", ".txt"):
        raise InputError(f"task {str(path)!r} is not known: give `probe`, a .jsonl file or a .txt file")
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"task file {path} can't be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"task file {path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error
    items = read_jsonl(str(path), text) if path.suffix == ".jsonl" else text_items("text", text)
    if not items:
        raise InputError(f"task file {path} is empty: give it at least one item")
    return items


def _spread(items: tuple[Item, ...], limit: int | None) -> tuple[Item, ...]:
    """The first items of each group in turn, up to the limit, in their original order."""
    seen: Counter[str] = Counter()
    turns = []
    for place, item in enumerate(items):
        turns.append((seen[item.group], place))
        seen[item.group] += 1
    return tuple(items[place] for place in sorted(place for _, place in sorted(turns)[:limit]))
