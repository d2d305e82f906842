"""A headline figure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What it is, its value and its interval as they are written, and what is behind it."""

    title: str
    value: str
    interval: str
    meaning: str
