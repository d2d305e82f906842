"""What both kinds of fault that wait for tokens need: the rows in which it is due, and whether faults are in each
other's way."""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from aftershock.errors import InputError
from aftershock.faults import Entry, Fault, column_of
from aftershock.models import Pass


@dataclass(frozen=True)
class Due:
    """A fault that the next forward call must strike, at one column in each of some rows; `places` are those of the
    rows in the tensor that is struck."""

    fault: int
    rows: list[int]
    places: list[int]
    columns: list[int]


def due_rows(fault: int, entry: Entry, own: range, call: Pass, rows: Sequence[int], columns: range) -> Due:
    """Where a fault strikes: in those of its `own` rows that have a token in the call, and `entry` in `columns`. The
    tensor that is struck has the rows `rows`, in order."""
    due = Due(fault, [], [], [])
    for place in range(bisect_left(rows, own.start), bisect_left(rows, own.stop)):
        row = rows[place]
        at = column_of(entry, call.block, row)
        if at is None or at not in columns:
            continue
        if call.takes_part(row) and call.block.holds(row, range(at, at + 1)):
            due.rows.append(row)
            due.places.append(place)
            due.columns.append(at)
    return due


@dataclass(frozen=True)
class Spans:
    """A fault that the next forward call must strike, at some columns of each of some rows; `places` are those of the
    rows in the tensor that is struck."""

    fault: int
    rows: list[int]
    places: list[int]
    columns: list[range]


def due_spans(fault: int, first: int, end: int | None, own: range, call: Pass) -> Spans:
    """Where a fault strikes that is there at every token of the passes [first, end): in those of its `own` rows that
    run in the call and have such tokens in it."""
    spans, block = Spans(fault, [], [], []), call.block
    start = max(call.start, block.start(first))
    stop = call.stop if end is None else min(call.stop, block.start(end))
    for place in range(bisect_left(call.rows, own.start), bisect_left(call.rows, own.stop)):
        row = call.rows[place]
        columns = block.own_columns(row, range(start, stop))
        if columns and call.takes_part(row):
            spans.rows.append(row)
            spans.places.append(place)
            spans.columns.append(columns)
    return spans


class Claims:
    """Words and the faults that want them.

    Faults on one word that overlap in part are refused, since undoing one would undo the other.
    """

    def __init__(self) -> None:
        self._faults: dict[Hashable, list[Fault]] = {}

    def add(self, word: Hashable, fault: Fault) -> None:
        """Note a fault on a word. Raises InputError when it overlaps in part with another one there."""
        others = self._faults.setdefault(word, [])
        for other in others:
            if other.trigger != fault.trigger and (
                other.trigger.covers(fault.first) or fault.trigger.covers(other.first)
            ):
                raise InputError(
                    f"fault '{fault}' overlaps in time with another fault on the same word: "
                    "give them the same trigger or passes apart"
                )
        others.append(fault)
