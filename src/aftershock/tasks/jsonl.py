"""Task files: one JSON object a line, all lines of one schema."""

import json

from pydantic import ValidationError

from aftershock.errors import InputError
from aftershock.tasks.choices import (
    CausalChoice,
    Choice,
    ContextChoice,
    PassageChoice,
    SubjectChoice,
    TruthfulChoice,
)
from aftershock.tasks.coding import FunctionBody, WholeProgram
from aftershock.tasks.schemas import Cloze, Generation, Line, OwnItem, Problem

_SCHEMAS: tuple[tuple[frozenset[str], type[Line]], ...] = (
    (frozenset({"kind", "contexts"}), OwnItem),
    (frozenset({"prompt", "test", "entry_point"}), FunctionBody),
    (frozenset({"prompt", "tests"}), WholeProgram),
    (frozenset({"prompts", "suffix", "choices"}), ContextChoice),
    (frozenset({"question", "choices", "mc2_choices"}), TruthfulChoice),
    (frozenset({"subject", "question", "choices"}), SubjectChoice),
    (frozenset({"context", "question", "choices"}), PassageChoice),
    (frozenset({"question", "choices"}), Choice),
    (frozenset({"subject", "level", "prompt", "answer"}), Problem),
    (frozenset({"prompt", "answer"}), Generation),
    (frozenset({"context", "answer"}), Cloze),
)
"""Keys that tell a schema, the most telling first."""


def read_jsonl(name: str, text: str) -> tuple[Line, ...]:
    """The lines of a task file's text; `name` is what errors call the file. Blank lines are passed over.

    The keys of the first line tell the schema (and a question of "cause" or "effect", a causal choice); every
    line must fit it.

    Raises InputError, naming file and line, for a line that is no JSON object or does not fit the schema, an
    unknown schema, and an id that occurs twice.
    """
    # Only line feeds end a line: JSON strings may hold the other separators that str.splitlines knows.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        return ()
    schema = _schema(f"{name} line {lines[0][0]}", lines[0][1])
    first_use: dict[str, int] = {}
    found = []
    for number, text in lines:
        line = _line(f"{name} line {number}", text, schema)
        if first_use.setdefault(line.id, number) != number:
            raise InputError(
                f"{name} line {number}: id {line.id!r} was used on line {first_use[line.id]}: "
                "give every item an id of its own"
            )
        found.append(line)
    return tuple(found)


def _schema(where: str, line: str) -> type[Line]:
    fields = _object(where, line)
    schema = next((schema for keys, schema in _SCHEMAS if keys <= fields.keys()), None)
    if schema is None:
        known = "; ".join(", ".join(sorted(keys)) for keys, _ in _SCHEMAS)
        raise InputError(
            f"{where} has the keys {', '.join(sorted(fields))}, which no known schema has: "
            f"use id with one of these sets of keys: {known}"
        )
    if schema is PassageChoice and fields["question"] in ("cause", "effect"):
        return CausalChoice
    return schema


def _line(where: str, line: str, schema: type[Line]) -> Line:
    _object(where, line)
    try:
        return schema.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        what = ".".join(map(str, first["loc"])) + (": " if first["loc"] else "") + message
        raise InputError(f"{where}: {what}: mend or remove the line") from error


def _object(where: str, line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({error}): mend or remove the line") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where} is not a JSON object: write one {{...}} a line")
    return fields
