"""The report as Markdown, for a pull request, a paper's appendix or a terminal."""

import re
from collections.abc import Iterable, Sequence

import polars as pl

from aftershock.report.content import Content, content
from aftershock.report.tables import ALL_SITES, rate_frame
from aftershock.report.wording import visible
from aftershock.study import StoredStudy, Summary

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")

_ANSWERS = 20


def markdown(stored: StoredStudy, summary: Summary) -> str:
    """The report of a study as Markdown. Prompts and answers are escaped: they hold no markup."""
    said = content(stored, summary)
    blocks = [
        f"# {escaped(said.title)}",
        escaped(said.statement),
        *(f"**{escaped(warning)}**" for warning in said.warnings),
        _table(
            ("figure", "value", "95 % interval", "n"),
            [(figure.title, figure.value, figure.interval, figure.n) for figure in said.figures],
        ),
        "## Outcomes",
        _table(
            ("outcome", "rule", "share", "95 % interval", "faults", "answers", "noise floor"),
            [
                (row.outcome, row.meaning, row.share, row.interval, row.faults, row.pairs, row.noise)
                for row in said.outcomes
            ],
        ),
        escaped(said.changed_wrong),
        *_sweep(said),
        *_generate(said),
        *_rates(said),
        "## Worst faults",
        _table(
            ("trial", "fault", "value", "SDC", "DUE", "repeat it"),
            [(str(row.trial), row.fault, row.change, row.silent, row.detected, row.replay) for row in said.worst],
        ),
        "## Faulty answers",
        _table(
            ("trial", "item", "outcome", "golden", "faulty"),
            [
                (str(row.trial), row.item, row.outcome, row.common + row.golden, row.common + row.faulty)
                for row in said.answers[:_ANSWERS]
            ],
        ),
        "## What ran, and on what",
        _table(("", ""), said.circumstances),
        "## Reproduce and cite",
        "\n".join(f"    {line}" for line in (said.command, "", *said.settings.splitlines())),
        escaped(said.citation),
    ]
    return "\n\n".join(blocks) + "\n"


def _sweep(said: Content) -> Iterable[str]:
    if said.sweep:
        yield "## Combination by combination"
        yield _table(
            (
                *(key for key, _ in said.sweep[0].values),
                "faults",
                "SDC",
                "DUE",
                "accuracy",
                "relative loss of accuracy",
            ),
            [
                (*(value for _, value in row.values), row.faults, row.silent, row.detected, row.accuracy, row.loss)
                for row in said.sweep
            ],
        )


def _generate(said: Content) -> Iterable[str]:
    if said.generate is not None:
        yield "## Beside plain generate"
        yield escaped(said.generate.introduction)
        yield _table(
            ("", "share", "95 % interval", "n"),
            [(row.what, row.share, row.interval, row.n) for row in said.generate.rows],
        )
        yield escaped(said.generate.conclusion)


def _rates(said: Content) -> Iterable[str]:
    for column in ("component", "layer", "stage", "bit"):
        rates = rate_frame(said.trials, [column]).filter(pl.col("site") == ALL_SITES)
        if not rates.is_empty():
            yield f"## SDC rate by {column}"
            yield _table(
                (column, "SDC rate, 95 % interval", "faults"),
                [tuple(map(str, row)) for row in rates.select(column, "written", "n").iter_rows()],
            )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    lines = [header, ["---"] * len(header), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text on one line, with Markdown's and HTML's special characters escaped and control characters written out."""
    return " ".join(_SPECIAL.sub(r"\\\1", visible(text)).split())
