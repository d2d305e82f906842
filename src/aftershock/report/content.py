"""What a report says, whatever it is written in: figures, outcomes, worst faults, faulty answers, circumstances."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import polars as pl

from aftershock.report.examples import ANSWERS, AnswerRow, WorstRow, answer_rows, changed, worst_rows
from aftershock.report.figure import Figure
from aftershock.report.generate import GenerateContent, generate_content
from aftershock.report.searched import search_tables
from aftershock.report.sweep import SweepContent, sweep_content
from aftershock.report.table import Table
from aftershock.report.tables import ALL_SITES, outcome_frame, trial_frame
from aftershock.report.takeaways import TakeawayContent, takeaway_content
from aftershock.report.wording import (
    interval,
    percent,
    point_interval,
    points,
    rate,
)
from aftershock.stats import wilson
from aftershock.study import (
    Rate,
    SdcRate,
    StoredStudy,
    Summary,
    to_toml,
)

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


@dataclass(frozen=True)
class DrawnFigure(Figure):
    """A headline figure with what it was counted on, and the shares that its strip is drawn from."""

    n: str
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
class Content:
    """Everything a report says, in words; the charts are drawn from `trials`."""

    title: str
    statement: str
    warnings: tuple[str, ...]
    figures: tuple[DrawnFigure, ...]
    outcomes: tuple[OutcomeRow, ...]
    changed_wrong: str
    search: tuple[Table, ...]
    sweep: SweepContent | None
    takeaways: TakeawayContent | None
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
        search=search_tables(summary.search),
        sweep=sweep_content(summary),
        takeaways=takeaway_content(summary.takeaways),
        generate=None if summary.against_generate is None else generate_content(summary.against_generate),
        worst=tuple(worst_rows(trials, stored)),
        answers=tuple(islice(answer_rows(stored), ANSWERS)),
        changed_answers=sum(1 for _ in changed(stored)),
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


def _figures(summary: Summary) -> Iterator[DrawnFigure]:
    sdc, floor = summary.sdc_rate, summary.noise_floor
    pairs = f"{sdc.n_faults:,} faults, {sdc.n_pairs:,} answers"
    yield _figure("SDC rate", sdc, pairs, "eligible answers silently corrupted, mean over faults")
    yield DrawnFigure(
        "Excess over the noise floor",
        points(sdc.excess),
        point_interval(sdc.excess_low, sdc.excess_high),
        "SDC rate less that of perturbations that mean nothing, on the same items",
        pairs,
        sdc.excess,
        sdc.excess_low,
        sdc.excess_high,
    )
    yield _figure("Any SDC", summary.any_sdc, f"{sdc.n_faults:,} faults", "faults that corrupt at least one answer")
    yield _figure("DUE rate", summary.due_rate, pairs, "answers that end in NaN, infinity or a crash")
    yield _figure("Noise floor", floor, f"{floor.n:,} perturbations", "SDC rate of perturbations that mean nothing")


def _figure(title: str, of: Rate | SdcRate, n: str, meaning: str) -> DrawnFigure:
    written = percent(of.estimate), interval(of.low, of.high)
    return DrawnFigure(title, *written, meaning, n, of.estimate, of.low, of.high)


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
