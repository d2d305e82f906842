"""What a report says, whatever it is written in: figures, outcomes, worst faults, faulty answers, circumstances."""

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import polars as pl

from aftershock.report.generate import GenerateContent, generate_content
from aftershock.report.tables import ALL_SITES, OUTSIDE, outcome_frame, trial_frame
from aftershock.report.wording import (
    interval,
    number,
    percent,
    point_interval,
    points,
    rate,
    split_at_difference,
)
from aftershock.stats import wilson
from aftershock.study import (
    DUE,
    SDC,
    GoldenRecord,
    ItemRecord,
    Rate,
    SdcRate,
    StoredStudy,
    Summary,
    TrialRecord,
    to_toml,
)

WORST_FAULTS = 15
"""Rows of the table of worst faults."""

ANSWERS = 240
"""Most faulty answers that a page shows; all of them are in items.csv."""

ANSWERS_PER_FAULT = 4
"""Most faulty answers shown of one fault, so that one bad fault does not fill the page."""

MEANINGS = {
    "masked": "the answer equals golden's",
    "benign": "the text differs, the answer is still right",
    "subtle": "was right, is now wrong, and reads well: silent data corruption",
    "distorted": "was right, is now repetition, gibberish or of the wrong length: silent data corruption",
    "non_finite": "a NaN or an infinity reached the logits: shows by itself",
    "crash": "the model raised an error: shows by itself",
}

PROOFS = {
    "converged": "the state was golden's again to the bit",
    "not_activated": "nothing that runs reads what the fault changes",
}

_DISPLAY_ORDER = ("distorted", "subtle", "non_finite", "crash", "benign", "masked", "unreached")


@dataclass(frozen=True)
class Figure:
    """One headline number. `estimate`, `low` and `high` are shares; `value` and `interval` how they are written."""

    title: str
    value: str
    interval: str
    n: str
    meaning: str
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class OutcomeRow:
    """One outcome: its share (mean over faults) and how often it came up."""

    outcome: str
    meaning: str
    share: str
    interval: str
    faults: str
    pairs: str
    noise: str


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


@dataclass(frozen=True)
class Content:
    """Everything a report says, in words; the charts are drawn from `trials`."""

    title: str
    statement: str
    warnings: tuple[str, ...]
    figures: tuple[Figure, ...]
    outcomes: tuple[OutcomeRow, ...]
    changed_wrong: str
    generate: GenerateContent | None
    worst: tuple[WorstRow, ...]
    answers: tuple[AnswerRow, ...]
    changed_answers: int
    circumstances: tuple[tuple[str, str], ...]
    settings: str
    command: str
    citation: str
    trials: pl.DataFrame


def content(stored: StoredStudy, summary: Summary) -> Content:
    """What the report of a study says."""
    trials = trial_frame(stored.counted)
    environment = stored.environment
    return Content(
        title=f"{len(stored.trials):,} faults in {environment.model}",
        statement=_statement(summary),
        warnings=tuple(_warnings(stored)),
        figures=tuple(_figures(summary)),
        outcomes=tuple(_outcome_rows(trials, summary)),
        changed_wrong=_changed_wrong(summary),
        generate=None if summary.against_generate is None else generate_content(summary.against_generate),
        worst=tuple(_worst_rows(trials, stored)),
        answers=tuple(islice(_answer_rows(stored), ANSWERS)),
        changed_answers=sum(1 for _ in _changed(stored)),
        circumstances=tuple(_circumstances(stored, summary)),
        settings=to_toml(stored.settings),
        command="aftershock study study.toml --out DIR",
        citation=(
            f"aftershock {environment.versions.get('aftershock', '')}, {len(stored.trials):,} faults on "
            f"{environment.model} ({environment.dtype}, model {environment.model_hash[:12]}), "
            f"plan {summary.plan_digest[:12]}, records {summary.records_digest[:12]}"
        ),
        trials=trials,
    )


def _statement(summary: Summary) -> str:
    sdc = summary.sdc_rate
    verdict = (
        "more than the noise floor explains" if sdc.excess_low > 0 else "which the noise floor alone could explain"
    )
    return (
        f"On average a fault silently corrupted {percent(sdc.estimate)} of its eligible answers "
        f"(95 % interval {interval(sdc.low, sdc.high)}, {sdc.n_faults:,} faults), {verdict}."
    )


def _warnings(stored: StoredStudy) -> Iterator[str]:
    if stored.settings.search.values:
        yield (
            "The bits were chosen by a search for the smallest harmful change of each value: the rates below are of "
            "its probes, not of random bits."
        )
    elif not stored.complete:
        yield (
            f"Not complete: {len(stored.trials):,} of {stored.planned:,} planned trials are in. "
            "The figures cover these, of a stratified plan its complete rounds; go on with --resume."
        )
    if stored.aa_disagreements:
        yield (
            f"The A/A run disagreed with itself on {stored.aa_disagreements:,} of {len(stored.golden):,} items: "
            "this machine is not deterministic, and small effects below may be its own."
        )


def _figures(summary: Summary) -> Iterator[Figure]:
    sdc, floor = summary.sdc_rate, summary.noise_floor
    pairs = f"{sdc.n_faults:,} faults, {sdc.n_pairs:,} answers"
    yield _figure("SDC rate", sdc, pairs, "eligible answers silently corrupted, mean over faults")
    yield Figure(
        "Excess over the noise floor",
        points(sdc.excess),
        point_interval(sdc.excess_low, sdc.excess_high),
        pairs,
        "SDC rate less that of perturbations that mean nothing, on the same items",
        sdc.excess,
        sdc.excess_low,
        sdc.excess_high,
    )
    yield _figure("Any SDC", summary.any_sdc, f"{sdc.n_faults:,} faults", "faults that corrupt at least one answer")
    yield _figure("DUE rate", summary.due_rate, pairs, "answers that end in NaN, infinity or a crash")
    yield _figure("Noise floor", floor, f"{floor.n:,} perturbations", "SDC rate of perturbations that mean nothing")


def _figure(title: str, of: Rate | SdcRate, n: str, meaning: str) -> Figure:
    return Figure(title, percent(of.estimate), interval(of.low, of.high), n, meaning, of.estimate, of.low, of.high)


def _outcome_rows(trials: pl.DataFrame, summary: Summary) -> Iterator[OutcomeRow]:
    noise: dict[str, int] = dict(summary.noise_outcomes)
    pooled = outcome_frame(trials, ()).filter(pl.col("site") == ALL_SITES)
    shares = {row["outcome"]: row for row in pooled.iter_rows(named=True)}
    for outcome, share in shares.items():
        yield OutcomeRow(
            outcome,
            MEANINGS[outcome],
            percent(share["estimate"]),
            interval(share["low"], share["high"]),
            f"{share['n']:,}",
            f"{trials[outcome].sum():,}",
            f"{noise.get(outcome, 0):,} of {sum(noise.values()):,}",
        )


def _changed_wrong(summary: Summary) -> str:
    return (
        f"Of the answers that golden gets wrong, {summary.wrong_to_right:,} became right and "
        f"{summary.wrong_to_other:,} became wrong in another way; they are counted apart from SDC. "
        f"{summary.unreached:,} answers had ended before the fault's moment came; they count nowhere."
    )


def _worst_rows(trials: pl.DataFrame, stored: StoredStudy) -> Iterator[WorstRow]:
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


def _changed(stored: StoredStudy) -> Iterator[tuple[TrialRecord, ItemRecord]]:
    """Every answer that differs from golden's, silent corruption first."""
    pairs = [(trial, item) for trial in stored.trials for item in trial.items if item.output is not None]
    return iter(sorted(pairs, key=lambda pair: _DISPLAY_ORDER.index(pair[1].outcome)))


def _answer_rows(stored: StoredStudy) -> Iterator[AnswerRow]:
    golden = {record.item: record for record in stored.golden}
    shown: Counter[int] = Counter()
    for trial, item in _changed(stored):
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


def _circumstances(stored: StoredStudy, summary: Summary) -> Iterator[tuple[str, str]]:
    environment = stored.environment
    yield "Model", f"{environment.model} ({environment.architecture}, {environment.parameters:,} parameters)"
    yield "Model hash", environment.model_hash
    yield "Format and device", f"{environment.dtype} on {environment.device}, {environment.threads} threads"
    yield "Software", ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    yield "Trials", f"{len(stored.trials):,} of {stored.planned:,} planned, in {stored.seconds:,.0f} s"
    yield "Interval of the SDC rate", summary.sdc_rate.interval
    if summary.strata:
        effective = summary.sdc_rate.effective_faults
        yield "Plan", f"{len(summary.strata):,} strata; the faults are worth {effective:,.0f} equally weighted ones"
    if summary.verdict is not None:
        yield "Rule", summary.verdict.text().partition("\n")[0]
    golden = summary.golden
    yield "Items", f"{golden.items:,}, of which {golden.with_reference:,} have a reference answer"
    if golden.with_reference:
        accuracy = wilson(golden.right, golden.with_reference)
        written = rate(accuracy.estimate, accuracy.low, accuracy.high)
        yield "Golden accuracy", f"{written} ({golden.right:,} of {golden.with_reference:,} items)"
    if stored.aa_disagreements is not None:
        same = len(stored.golden) - stored.aa_disagreements
        yield "A/A run", f"{same:,} of {len(stored.golden):,} items bit-identical when run again without a fault"
    yield "Trials proved masked early", _proved(summary)
    if summary.audit is not None:
        yield "Audit", summary.audit.text()
    yield (
        "Noise floor from",
        f"{len(stored.noise):,} perturbations: "
        + "; ".join(record.perturbation for record in stored.noise[:3])
        + ("; …" if len(stored.noise) > 3 else ""),
    )
    yield "Plan digest", summary.plan_digest
    yield "Records digest", summary.records_digest


def _proved(summary: Summary) -> str:
    """Share of the trials that a proof ended before their end, kind by kind."""
    shares = "; ".join(
        f"{rate(share.estimate, share.low, share.high)} {kind} ({PROOFS[kind]})"
        for kind, share in summary.proofs.items()
    )
    counted = max(share.n for share in summary.proofs.values())
    return f"{shares}; n = {counted:,} trials (not looked for where trials share a run, nor by the reference executor)"
