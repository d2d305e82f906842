"""Records of `benchmarks.protect_voltage`: each is written as soon as it is there, and never measured twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records:
    """A file of JSON lines, {"key": what was asked, "value": what was measured}."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        # The last line of a run that was killed may be half a one.
        self._known = {_name(one["key"]): one for one in map(_parsed, lines) if one is not None}

    def measured(self, key: Record, measure: Callable[[], Record]) -> Record:
        """The value of a key: as recorded, or measured now."""
        if _name(key) not in self._known:
            line = {"key": key, "value": measure()}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._known[_name(key)] = line
        value: Record = self._known[_name(key)]["value"]
        return value

    def all(self) -> list[Record]:
        """Key and value of every record, as one."""
        return [{**one["key"], **one["value"]} for one in self._known.values()]


def _name(key: Record) -> str:
    return json.dumps(key, sort_keys=True)


def _parsed(line: str) -> Record | None:
    try:
        parsed: Record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return parsed
