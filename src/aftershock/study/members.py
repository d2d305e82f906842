"""The studies that a campaign file stands for: what they share, and what each has of its own."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from aftershock.errors import InputError

MEMBERS = "study"
"""The array of tables that makes a study file a campaign's."""

LONGEST_NAME = 200
RESERVED = frozenset({"campaign.json", "report.html", "report.md"})
"""Names that the campaign's folder has a use for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def is_campaign(tables: Mapping[str, Any]) -> bool:
    """Whether a study file names several studies."""
    return MEMBERS in tables


def expand(tables: Mapping[str, Any], source: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Name and tables of every study of a campaign file, in its order.

    Each `[[study]]` has a `name` and its own keys, which go over those that the file has for all; with `across` it
    stands for one study for each combination of some keys' values. Raises InputError for a study without a proper name,
    for two of one name, and for what is no table.
    """
    common = {name: table for name, table in tables.items() if name != MEMBERS}
    entries = tables[MEMBERS]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{source}: the studies of a campaign are written as [[{MEMBERS}]] tables, one or more")
    found = [one for entry in entries for one in _expanded(common, entry, source)]
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: two studies are named {twice[0]!r}: give every [[{MEMBERS}]] a name of its own")
    return tuple(found)


def _expanded(common: Mapping[str, Any], entry: Mapping[str, Any], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{source}: a [[{MEMBERS}]] has the name {name!r}: give it one of letters, digits, - and _")
    across = entry.get("across", {})
    own = {key: value for key, value in entry.items() if key not in ("name", "across")}
    keys = [(table, key) for table, choices in _tables(across, name, source) for key in choices]
    values = [across[table][key] for table, key in keys]
    if not all(isinstance(choices, list) and choices for choices in values):
        raise InputError(f"{source}: study {name!r} goes across a key without values: give a list of them")
    for chosen in product(*values):
        tables = _over(common, dict(_tables(own, name, source)))
        for (table, key), value in zip(keys, chosen, strict=True):
            tables = _over(tables, {table: {key: value}})
        named = "-".join([name, *map(_slug, chosen)])
        if len(named) > LONGEST_NAME or named in RESERVED:
            raise InputError(
                f"{source}: study {named[:60]!r} can't be a folder's name here: give it another, shorter name"
            )
        yield named, tables


def _tables(table: Any, name: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    items = table.items() if isinstance(table, dict) else [("across", table)]
    for key, value in items:
        if not isinstance(value, dict):
            raise InputError(f"{source}: {key!r} of study {name!r} is no table of keys: write it as table.key = ...")
        yield key, value


def _over(tables: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**tables, **{name: {**table_of(tables, name), **table} for name, table in own.items()}}


def table_of(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The keys of a table of a study file, none where it has no such table. Raises InputError where it is none."""
    found = tables.get(name, {})
    if not isinstance(found, dict):
        raise InputError(f"{name!r} is no table of keys: write [{name}] and its keys below")
    return found


def _slug(value: Any) -> str:
    """A value as part of a folder's name; of a path or a model spec what tells it apart."""
    words = value if isinstance(value, list) else [value]
    stems = [re.sub(r"\.(jsonl|txt|gguf|ya?ml)$", "", str(word)) for word in words]
    return "+".join(re.sub(r"[^A-Za-z0-9_.+]+", "-", re.split(r"[/:]", stem)[-1]).strip("-.") for stem in stems)
