"""Tasks: the built-in probe set, JSONL files, plain text, those of lm-evaluation-harness."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from aftershock.errors import InputError
from aftershock.tasks.asking import Asking, ask
from aftershock.tasks.items import Item
from aftershock.tasks.jsonl import read_jsonl
from aftershock.tasks.programs import check_sandbox
from aftershock.tasks.schemas import Line

CHUNK = 2000
"""Most characters of one lm item, about 500 tokens of English."""

HARNESS = "lm_eval:"
"""What the spec of a task of lm-evaluation-harness begins with."""

PLAIN = Asking()
"""Questions as their schemas have them."""

_Found = TypeVar("_Found", Item, Line)

_CHUNKS = re.compile(rf"(?s).{{500,{CHUNK - 1}}}(?:\n|\Z)|.{{500,{CHUNK - 1}}}\s|.{{1,{CHUNK}}}")


@dataclass(frozen=True)
class Task:
    """A named set of items. `digest` is a SHA-256 over the items' content, in order."""

    name: str
    items: tuple[Item, ...]
    digest: str


def load_task(spec: str, limit: int | None = None, max_new_tokens: int | None = None, asking: Asking = PLAIN) -> Task:
    """The task of a spec: `probe` (the built-in set), a `.jsonl` file, a `.txt` file (language modelling), or
    `lm_eval:` with the name or the `.yaml` file of a task of lm-evaluation-harness (the extra `lm-eval`).

    `limit` keeps that many items: the first ones of a file, or an even share of every group of the probe set.
    `max_new_tokens` replaces the length limit of every generation item. `asking` says how a file's questions are put.

    Raises InputError for a file that is absent, empty, of another type or not UTF-8, a broken line (named by
    its number), a limit below 1, an `asking` that does not fit, programs that can't be run safely here, and a task of
    the harness that is unknown or can't be asked here.
    """
    for name, value in (("limit", limit), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: choose 1 or more")
    if spec == "probe":
        items = _spread(_asked("the probe set", _probe_lines(), asking), limit)
        name = spec
    elif spec.startswith(HARNESS):
        if asking.answers == "letter" or asking.shots:
            raise InputError(f"task {spec} is asked as the harness does it: leave answers and shots out")
        name, items = _harness_items(spec.removeprefix(HARNESS), limit)
    else:
        items = _read(Path(spec), asking)[:limit]
        name = Path(spec).stem
    if max_new_tokens is not None:
        items = tuple(
            replace(item, max_new_tokens=max_new_tokens) if item.kind == "generation" else item for item in items
        )
    items = _allowed(spec, items, asking)
    content = json.dumps([_content(item) for item in items], ensure_ascii=True, sort_keys=True)
    return Task(name, items, hashlib.sha256(content.encode()).hexdigest())


def absolute_spec(spec: str) -> str:
    """The spec that gives the same task in every folder of this machine: the file that it names, in full."""
    source = HARNESS if spec.startswith(HARNESS) else ""
    path = Path(spec.removeprefix(source)).expanduser()
    return f"{source}{path.resolve()}" if path.suffix and path.is_file() else spec


def probe_items() -> tuple[Item, ...]:
    """Every item of the built-in probe set: short questions in English, French and Spanish."""
    return tuple(line.item() for line in _probe_lines())


def text_items(name: str, text: str) -> tuple[Item, ...]:
    """Language-modelling items that cover a text in order: chunks of up to 2,000 characters.

    Chunks end at line ends where they can, else at white space; blank ones are left out.
    """
    chunks = [chunk for chunk in _CHUNKS.findall(text) if not chunk.isspace()]
    return tuple(
        Item(id=f"{name}-{index}", kind="lm", group="lm", contexts=("",), continuations=(chunk,))
        for index, chunk in enumerate(chunks)
    )


def _content(item: Item) -> dict[str, Any]:
    """Whatever decides the item's rows and answers, made for JSON."""
    content = asdict(replace(item, rules=None))
    del content["rules"]
    return content if item.rules is None else {**content, "rules": item.rules.digest}


def _harness_items(spec: str, limit: int | None) -> tuple[str, tuple[Item, ...]]:
    if find_spec("lm_eval") is None:
        raise InputError(
            f"task '{HARNESS}{spec}' needs lm-evaluation-harness, which is not installed here: "
            'pip install "aftershock[lm-eval]"'
        )
    from aftershock.tasks.harness import harness_items

    return harness_items(spec, limit)


def _probe_lines() -> tuple[Line, ...]:
    path = files("aftershock.tasks") / "probe.jsonl"
    return read_jsonl("the probe set", path.read_text(encoding="utf-8"))


def _read(path: Path, asking: Asking) -> tuple[Item, ...]:
    if path.suffix == ".jsonl":
        return _asked(str(path), _lines(path), asking)
    if path.suffix != ".txt":
        raise InputError(f"task {str(path)!r} is not known: give `probe`, a .jsonl file, a .txt file or lm_eval:NAME")
    if asking.answers == "letter" or asking.shots:
        raise InputError(f"task file {path} is a text, which asks no questions: leave answers and shots out")
    return _not_empty(path, text_items("text", _text(path)))


def _asked(name: str, lines: tuple[Line, ...], asking: Asking) -> tuple[Item, ...]:
    others = None if asking.shots_from is None else _lines(Path(asking.shots_from))
    return ask(name, lines, others, asking)


def _lines(path: Path) -> tuple[Line, ...]:
    return _not_empty(path, read_jsonl(str(path), _text(path)))


def _not_empty(path: Path, found: tuple[_Found, ...]) -> tuple[_Found, ...]:
    if not found:
        raise InputError(f"task file {path} is empty: give it at least one item")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"task file {path} can't be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"task file {path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error


def _allowed(spec: str, items: tuple[Item, ...], asking: Asking) -> tuple[Item, ...]:
    """The items, told how far their programs may go; raises InputError where the machine can't run them so."""
    if any(item.program for item in items):
        check_sandbox(spec, asking.unsafe_code)
    return tuple(
        item if item.program is None else replace(item, program=replace(item.program, unsafe=asking.unsafe_code))
        for item in items
    )


def _spread(items: tuple[Item, ...], limit: int | None) -> tuple[Item, ...]:
    """The first items of each group in turn, up to the limit, in their original order."""
    seen: Counter[str] = Counter()
    turns = []
    for place, item in enumerate(items):
        turns.append((seen[item.group], place))
        seen[item.group] += 1
    return tuple(items[place] for place in sorted(place for _, place in sorted(turns)[:limit]))
