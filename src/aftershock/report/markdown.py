"""The report as Markdown, for a pull request, a paper's appendix or a terminal."""

import re
from collections.abc import Iterable, Sequence

import polars as pl

from aftershock.report.content import Content, content
from aftershock.report.table import Table
from aftershock.report.tables import ALL_SITES, rate_frame
from aftershock.report.takeaways import TakeawayContent
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
        table(
            ("figure", "value", "95 % interval", "n"),
            [(figure.title, figure.value, figure.interval, figure.n) for figure in said.figures],
        ),
        "## Outcomes",
        table(
            ("outcome", "rule", "share", "95 % interval", "faults", "answers", "noise floor"),
            [
                (row.outcome, row.meaning, row.share, row.interval, row.faults, row.pairs, row.noise)
                for row in said.outcomes
            ],
        ),
        escaped(said.changed_wrong),
        *_search(said),
        *_sweep(said),
        *_generate(said),
        *_rates(said),
        *takeaway_blocks(said.takeaways),
        "## Worst faults",
        table(
            ("trial", "fault", "value", "SDC", "DUE", "repeat it"),
            [(str(row.trial), row.fault, row.change, row.silent, row.detected, row.replay) for row in said.worst],
        ),
        "## Faulty answers",
        table(
            ("trial", "item", "outcome", "golden", "faulty"),
            [
                (str(row.trial), row.item, row.outcome, row.common + row.golden, row.common + row.faulty)
                for row in said.answers[:_ANSWERS]
            ],
        ),
        "## What ran, and on what",
        table(("", ""), said.circumstances),
        "## Reproduce and cite",
        "\n".join(f"    {line}" for line in (said.command, "", *said.settings.splitlines())),
        escaped(said.citation),
    ]
    return "\n\n".join(blocks) + "\n"


def _search(said: Content) -> Iterable[str]:
    if said.search:
        yield "## What the search found"
        yield from _tables(said.search)


def _tables(tables: Iterable[Table]) -> Iterable[str]:
    for more in tables:
        yield f"### {escaped(more.title)}"
        yield escaped(more.note)
        yield table(more.header, more.rows)


def _sweep(said: Content) -> Iterable[str]:
    if said.sweep is None:
        return
    yield "## Combination by combination"
    rows = said.sweep.rows
    yield table(
        (*(key for key, _ in rows[0].values), "faults", "SDC", "DUE", "lost", "accuracy", "relative loss of accuracy"),
        [
            (
                *(value for _, value in row.values),
                row.faults,
                row.silent,
                row.detected,
                row.lost,
                row.accuracy,
                row.loss,
            )
            for row in rows
        ],
    )
    yield from _tables(said.sweep.tables)


def takeaway_blocks(said: TakeawayContent | None) -> Iterable[str]:
    """The blocks of the section on published takeaways; none where nothing could be tested."""
    if said is not None:
        yield "## Seventeen published takeaways"
        yield escaped(said.introduction)
        yield table(
            ("no.", "takeaway", "content", "verdict", "effect, 95 % interval", "p (Holm)", "faults"),
            [
                (
                    str(row.number),
                    row.claim,
                    row.label,
                    row.verdict,
                    f"{row.effect} {row.interval} {row.unit}",
                    row.p,
                    row.n,
                )
                for row in said.rows
            ],
        )
        yield escaped(said.untested)


def _generate(said: Content) -> Iterable[str]:
    if said.generate is not None:
        yield "## Beside plain generate"
        yield escaped(said.generate.introduction)
        yield table(
            ("", "share", "95 % interval", "n"),
            [(row.what, row.share, row.interval, row.n) for row in said.generate.rows],
        )
        yield escaped(said.generate.conclusion)


def _rates(said: Content) -> Iterable[str]:
    for column in ("component", "layer", "stage", "bit"):
        rates = rate_frame(said.trials, [column]).filter(pl.col("site") == ALL_SITES)
        if not rates.is_empty():
            yield f"## SDC rate by {column}"
            yield table(
                (column, "SDC rate, 95 % interval", "faults"),
                [tuple(map(str, row)) for row in rates.select(column, "written", "n").iter_rows()],
            )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its cells escaped; `None.` where there is no row."""
    if not rows:
        return "None."
    lines = [header, ["---"] * len(header), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text on one line, with Markdown's and HTML's special characters escaped and control characters written out."""
    return " ".join(_SPECIAL.sub(r"\\\1", visible(text)).split())
