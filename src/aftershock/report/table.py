"""A table that HTML and Markdown both show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table with what to know before reading it."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
