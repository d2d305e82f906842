"""Answers that left golden's and wait for company to be written on in."""

from collections.abc import Sequence
from dataclasses import dataclass

from aftershock.faults import Fault
from aftershock.models import Generated, Prefix
from aftershock.replay.pending import Pending, columns_of, lasting
from aftershock.replay.shapes import Shapes

ENOUGH = 6
"""Times the rows of one run that wait before any is written on: with many to choose from, those of one run end at
about the same time."""


@dataclass(frozen=True)
class Line:
    """One waiting answer: which of its trial's, and where it goes on from."""

    pending: Pending
    number: int
    prefix: Prefix


def faults_by_row(lines: Sequence[Line]) -> dict[tuple[int, ...], Sequence[Fault]]:
    """The rows of each trial, the lines being rows in their order, and the faults that are present there."""
    rows: dict[int, list[int]] = {}
    for row, line in enumerate(lines):
        rows.setdefault(id(line.pending), []).append(row)
    return {tuple(own): faults for own in rows.values() if (faults := lasting(lines[own[0]].pending.job.faults))}


class Stock:
    """Lines that wait, by the columns they need; `shapes` tell how many make up a run. `memory` bounds what is kept of
    their trials, in bytes."""

    def __init__(self, shapes: Shapes, memory: int) -> None:
        self._shapes, self._memory = shapes, memory
        self._waiting: dict[int, list[Line]] = {}
        self._written: dict[int, dict[int, Generated]] = {}
        self._held = 0

    def put(self, pending: Pending) -> None:
        """Let a trial's answers wait."""
        lines = self._waiting.setdefault(columns_of(pending.job.batch), [])
        lines += [Line(pending, number, prefix) for number, prefix in enumerate(pending.prefixes)]
        self._held += pending.nbytes
        self._written[id(pending)] = {}

    def runs(self) -> list[list[Line]]:
        """The full runs that are due, everything where memory is short, none while too few wait."""
        if self._held > self._memory:
            return self.rest()
        due = []
        for columns, lines in self._waiting.items():
            rows = self._shapes.rows(lines[0].prefix, columns) if lines else 1
            if len(lines) >= ENOUGH * rows:
                ordered = _ordered(lines)
                whole = len(ordered) - len(ordered) % rows
                due += _parts(ordered[:whole], rows)
                self._waiting[columns] = ordered[whole:]
        return due

    def rest(self) -> list[list[Line]]:
        """Everything that waits."""
        due = [
            part
            for columns, lines in self._waiting.items()
            if lines
            for part in _parts(_ordered(lines), self._shapes.rows(lines[0].prefix, columns))
        ]
        self._waiting.clear()
        return due

    def done(self, line: Line, written: Generated) -> Generated | None:
        """Take what a line came to; all the answers of its trial once it was the last."""
        answers = self._written[id(line.pending)]
        answers[line.number] = written
        if len(answers) < line.pending.lines:
            return None
        self._forget(line.pending)
        own = [answers[number] for number in range(len(answers))]
        return Generated(
            tuple(one.tokens[0] for one in own),
            tuple(one.ends[0] for one in own),
            tuple(one.finite[0] for one in own),
            tuple(one.margins[0] for one in own),
        )

    def give_up(self, lines: Sequence[Line]) -> list[Pending]:
        """Forget the trials that the lines belong to; returns each of them once."""
        trials = {id(line.pending): line.pending for line in lines if id(line.pending) in self._written}
        for pending in trials.values():
            self._forget(pending)
        self._waiting = {
            columns: [line for line in waiting if id(line.pending) in self._written]
            for columns, waiting in self._waiting.items()
        }
        return list(trials.values())

    def _forget(self, pending: Pending) -> None:
        del self._written[id(pending)]
        self._held -= pending.nbytes

    def waits(self, line: Line) -> bool:
        """Whether the line's trial has not been given up."""
        return id(line.pending) in self._written


def _ordered(lines: Sequence[Line]) -> list[Line]:
    """Those with most to write first."""
    return sorted(lines, key=lambda line: line.prefix.remaining, reverse=True)


def _parts(lines: Sequence[Line], rows: int) -> list[list[Line]]:
    return [list(lines[begin : begin + rows]) for begin in range(0, len(lines), rows)]


def line_of(written: Generated, row: int) -> Generated:
    """One row of what a run wrote."""
    one = slice(row, row + 1)
    return Generated(written.tokens[one], written.ends[one], written.finite[one], written.margins[one])
