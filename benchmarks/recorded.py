"""Records that a long run keeps as it goes, so that it can be ended at any time and gone on with."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class Lines:
    """JSON objects, one a line of a file (or kept here alone, where there is none), each found by some of its keys."""

    def __init__(self, path: Path | None, keys: Sequence[str]) -> None:
        """What the file holds already, where it is there; a last line that a killed run left half written is cut."""
        self._path, self._keys = path, tuple(keys)
        if path is not None and path.exists():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        known = read_lines([path] if path is not None and path.exists() else [])
        self._found = {self._key(record): record for record in known}

    @property
    def records(self) -> list[Json]:
        """All of them; of those with the same keys the last."""
        return list(self._found.values())

    def get(self, key: Mapping[str, Any], make: Callable[[], Json]) -> Json:
        """The record with these values of its keys; made, and kept, where there is none."""
        own = self._key(key)
        if own not in self._found:
            self.put({**key, **make()})
        return self._found[own]

    def put(self, record: Json) -> None:
        """Keep a record."""
        self._found[self._key(record)] = record
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return self._key(key) in self._found

    def _key(self, record: Mapping[str, Any]) -> str:
        # As text, in which a list is a key too, and the same as a tuple.
        return json.dumps([record.get(name) for name in self._keys])


def read_lines(paths: Sequence[Path]) -> list[Json]:
    """The objects of files of lines, one after the other; a last line without an end is half a one, and left out."""
    texts = (path.read_text(encoding="utf-8") for path in paths)
    return [_flat(json.loads(line)) for text in texts for line in text.split("\n")[:-1] if line]


def _flat(line: Json) -> Json:
    """A record: lines of older files keep what was asked and what was measured apart, as "key" and "value"."""
    return {**line["key"], **line["value"]} if line.keys() == {"key", "value"} else line
