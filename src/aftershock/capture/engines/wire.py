"""What a capturing script writes while its engine runs: one file for each pass, so that a crash loses one alone.

Runs in the engine's own environment: the standard library and numpy, nothing else. `assembly.py` makes a bundle of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

PARTS = "parts"
HEADER = "header.json"
REQUESTS = "requests.json"

LOGITS = "logits"
"""The module that a pass's logits are put under."""

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
"""numpy's types for the words of a tensor, by the names of safetensors; numpy has no bfloat16 but its words."""


@dataclass(frozen=True, eq=False)
class Words:
    """A tensor: the name of its type, as safetensors has it, and its words, in a type of numpy of the same width."""

    dtype: str
    array: npt.NDArray[Any]

    def data(self) -> bytes:
        """The words, little-endian, in C order."""
        return np.ascontiguousarray(self.array, dtype=DTYPES.get(self.dtype, self.array.dtype)).tobytes()

    def digest(self) -> str:
        """BLAKE2b-128 over the words."""
        return blake2b(self.data(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Row:
    """A token of a pass: its request, its number among that request's tokens, its id and its position."""

    request: int
    index: int
    token: int
    position: int


@dataclass(frozen=True)
class Share:
    """Channels i with `offset <= i % period < offset + length` belong to `component`."""

    component: str
    offset: int
    length: int
    period: int


@dataclass(frozen=True)
class Value:
    """One value that an engine computes, the same in every pass (`Record` of a manifest, without its tensors)."""

    module: str
    point: str = "output"
    call: int = 0
    type: str | None = None
    source: str | None = None
    layer: int | None = None
    operation: str = "other"
    shares: tuple[Share, ...] = ()
    parameters: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Asked:
    """What is to be captured, as the request's file says it.

    `prompts` are texts, lists of token ids, or lists of messages. `batching` is `one_by_one` or `together`. `record`
    are patterns for modules and components (all, where there are none), `threads` and `options` the engine's own
    settings, `cache` a folder for what is converted once.
    """

    model: str
    prompts: tuple[str | list[int] | list[dict[str, str]], ...]
    max_new_tokens: int = 1
    dtype: str = "float32"
    batching: str = "one_by_one"
    threads: int = 1
    record: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: str = "."

    def groups(self) -> list[list[int]]:
        """Numbers of the prompts that are handed to the engine at once."""
        numbers = range(len(self.prompts))
        return [list(numbers)] if self.batching == "together" else [[number] for number in numbers]

    def wants(self, value: Value) -> bool:
        """Whether a value is to be recorded: its module, or one of its components, matches a pattern."""
        names = [value.module, *(share.component for share in value.shares)]
        return not self.record or any(fnmatchcase(name, pattern) for name in names for pattern in self.record)


def read_request(path: str | Path) -> Asked:
    """The request in a file."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return Asked(**{**found, "prompts": tuple(found["prompts"]), "record": tuple(found.get("record", ()))})


def weight(
    name: str, words: Words, component: str | None = None, layer: int | None = None, offset: int = 0
) -> dict[str, Any]:
    """The manifest's entry for a tensor that the engine holds, output channels first, or a part of one."""
    return {
        "name": name,
        "component": component,
        "layer": layer,
        "offset": offset,
        "shape": list(words.array.shape),
        "dtype": words.dtype,
        "digest": words.digest(),
    }


class Recorder:
    """Writes passes as they run: `header`, then `begin` and `put` for each pass, at the end `finish`."""

    def __init__(self, folder: str | Path, asked: Asked) -> None:
        self._parts = Path(folder) / PARTS
        self._parts.mkdir(parents=True)
        self._asked = asked
        self._pass = -1
        self._rows: tuple[Row, ...] = ()
        self._entries: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """The tokens of the pass that runs."""
        return self._rows

    def header(
        self, engine: str, version: str, settings: Mapping[str, Any], weights: Sequence[Mapping[str, Any]]
    ) -> None:
        """Say what runs, before anything does."""
        asked = self._asked
        header = {
            "engine": {"name": engine, "version": version},
            "model": asked.model,
            "dtype": asked.dtype,
            "settings": {
                "threads": asked.threads,
                "batching": asked.batching,
                "options": dict(asked.options),
                **settings,
            },
            "weights": list(weights),
        }
        _write(self._parts / HEADER, header)

    def begin(self, rows: Sequence[Row]) -> None:
        """A pass over these tokens begins; the one before is over."""
        self._end()
        self._pass += 1
        self._rows = tuple(rows)
        self._file = (self._parts / f"{self._pass:05}.bin").open("wb")

    def put(self, value: Value, words: Words, places: Sequence[int] | None = None) -> None:
        """Store a value's words, shape (tokens, ...): of all tokens of the pass, or of those at `places`."""
        if self._file is None or not self._asked.wants(value):
            return
        expected = len(self._rows) if places is None else len(places)
        if words.array.ndim < 1 or words.array.shape[0] != expected:
            raise ValueError(f"{value.module}: {words.array.shape} where {expected} tokens were computed")
        entry = {
            "value": asdict(value),
            "dtype": words.dtype,
            "shape": list(words.array.shape),
            "places": None if places is None else list(places),
            "start": self._file.tell(),
            "digest": words.digest(),
        }
        self._file.write(words.data())
        self._entries.append(entry)

    def finish(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """The engine is done: `requests` has `text`, `prompt` and `sampled` (both ids) of each prompt, in order."""
        self._end()
        _write(self._parts / REQUESTS, list(requests))

    def _end(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        # Written last, so that a pass without it is one that was cut short.
        _write(
            self._parts / f"{self._pass:05}.json",
            {"rows": [asdict(row) for row in self._rows], "entries": self._entries},
        )
        self._entries = []


def _write(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.rename(path)
