"""The faults and answers behind the figures: the worst faults, and faulty answers beside golden's."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from aftershock.report.tables import OUTSIDE
from aftershock.report.wording import number, split_at_difference
from aftershock.study import DUE, SDC, GoldenRecord, ItemRecord, StoredStudy, TrialRecord

WORST_FAULTS = 15
"""Rows of the table of worst faults."""

ANSWERS = 240
"""Most faulty answers that a page shows; all of them are in items.csv."""

ANSWERS_PER_FAULT = 4
"""Most faulty answers shown of one fault, so that one bad fault does not fill the page."""

_DISPLAY_ORDER = ("distorted", "subtle", "non_finite", "crash", "benign", "masked", "unreached")


@dataclass(frozen=True)
class WorstRow:
    """One of the faults that corrupted most answers silently, and the command that repeats it."""

    trial: int
    fault: str
    labels: tuple[str, ...]
    keys: tuple[str, ...]
    site: str
    change: str
    silent: str
    detected: str
    kl: str
    replay: str


@dataclass(frozen=True)
class AnswerRow:
    """A faulty answer beside golden's: `common` is how both begin."""

    trial: int
    item: str
    group: str
    site: str
    labels: tuple[str, ...]
    keys: tuple[str, ...]
    outcome: str
    prompt: str
    reference: str
    common: str
    golden: str
    faulty: str


def worst_rows(trials: pl.DataFrame, stored: StoredStudy) -> Iterator[WorstRow]:
    """The faults that corrupted the largest shares of their answers silently, the worst first."""
    records = {trial.trial: trial for trial in stored.trials}
    harmful = trials.filter((pl.col("sdc_share") > 0) | (pl.col("due_share") > 0))
    worst = harmful.sort("sdc_share", "eligible", "due_share", "trial", descending=[True, True, True, False])
    for row in worst.head(WORST_FAULTS).iter_rows(named=True):
        trial = records[row["trial"]]
        yield WorstRow(
            trial.trial,
            " & ".join(trial.faults),
            _labels(trial),
            _keys(trial),
            trial.site,
            f"{number(row['old_value'])} → {number(row['new_value'])}",
            f"{sum(row[outcome] for outcome in SDC)} of {row['eligible']}",
            f"{sum(row[outcome] for outcome in DUE)} of {row['eligible']}",
            number(row["kl"]),
            f"aftershock replay {shlex.quote(str(stored.folder))} {trial.trial}",
        )


def changed(stored: StoredStudy) -> Iterator[tuple[TrialRecord, ItemRecord]]:
    """Every answer that differs from golden's, silent corruption first."""
    pairs = [(trial, item) for trial in stored.trials for item in trial.items if item.output is not None]
    return iter(sorted(pairs, key=lambda pair: _DISPLAY_ORDER.index(pair[1].outcome)))


def answer_rows(stored: StoredStudy) -> Iterator[AnswerRow]:
    """Changed answers, silent corruption first; of one fault only some."""
    golden = {record.item: record for record in stored.golden}
    shown: Counter[int] = Counter()
    for trial, item in changed(stored):
        shown[trial.trial] += 1
        if shown[trial.trial] > ANSWERS_PER_FAULT:
            continue
        answer = golden[item.item]
        before, after = _answer(answer, answer.output), _answer(answer, item.output or "")
        common, rest, faulty = split_at_difference(before, after)
        yield AnswerRow(
            trial.trial,
            item.item,
            answer.group,
            trial.site,
            _labels(trial),
            (*_keys(trial), f"outcome={item.outcome}", f"item={item.item}"),
            item.outcome,
            answer.prompt,
            "" if answer.reference is None else _answer(answer, answer.reference),
            common,
            rest,
            faulty,
        )


def _answer(golden: GoldenRecord, output: str) -> str:
    """An output as a reader sees it: choices by the option's text, losses by name, texts as they are."""
    if golden.kind == "choice":
        # A store is untrusted input: what is no option's number is shown as it is.
        return dict(zip(map(str, range(len(golden.options))), golden.options, strict=True)).get(output, output)
    return f"loss {output}" if golden.kind == "lm" else output


def _labels(trial: TrialRecord) -> tuple[str, ...]:
    """Where and when the trial's faults struck, as a reader sees it."""
    layer = () if trial.layer is None else (f"layer {trial.layer}",)
    bit = (f"bit {trial.bits[0]}",) if len(trial.bits) == 1 else ()
    return (trial.site, trial.component, *layer, *bit, trial.stage)


def _keys(trial: TrialRecord) -> tuple[str, ...]:
    """The same as exact search terms."""
    layer = OUTSIDE if trial.layer is None else str(trial.layer)
    return (
        f"trial={trial.trial}",
        f"site={trial.site}",
        f"component={trial.component}",
        f"layer={layer}",
        f"stage={trial.stage}",
        *(f"bit={bit}" for bit in trial.bits),
    )
