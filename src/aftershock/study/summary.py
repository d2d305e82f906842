"""A study in numbers: rates with intervals over faults, raw and over the noise floor."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import get_args

import numpy as np

from aftershock.replay import Proof
from aftershock.stats import (
    Design,
    Estimate,
    any_rate,
    by_label,
    clustering,
    effective_sample_size,
    paired_excess,
    weighted_by_label,
)
from aftershock.study.against_generate import AgainstGenerate, against_generate
from aftershock.study.audit import Audit, audit_of
from aftershock.study.curves import Curve, sweep_curves
from aftershock.study.degradation import DegradationModel, degradation_model
from aftershock.study.rates import Floats, LabelledRate, Rate, mean_rate
from aftershock.study.records import DUE, SDC, ItemOutcome, ItemRecord, Record, TrialRecord
from aftershock.study.searched import Searched, searched
from aftershock.study.sensitivity import Sensitivity, sensitivity
from aftershock.study.store import StoredStudy
from aftershock.study.swept import SweptRate, swept_rates
from aftershock.study.takeaways import Takeaway, takeaways
from aftershock.study.verdict import Verdict, design

LABELS = MappingProxyType[str, Callable[[TrialRecord], str | None]](
    {
        "site": lambda trial: trial.site,
        "component": lambda trial: trial.component,
        "layer": lambda trial: None if trial.layer is None else str(trial.layer),
        "stage": lambda trial: trial.stage,
        "bit_class": lambda trial: trial.bit_class,
        "bit": lambda trial: str(trial.bits[0]) if len(trial.bits) == 1 else None,
        "expert_use": lambda trial: trial.use_class,
    }
)
"""What the SDC rate is broken down by; None where a fault has no such label."""


class SdcRate(Record):
    """The SDC rate: mean over faults of the share of eligible items, and what of it the noise floor leaves.

    `interval` says when the interval of the rate holds: `fixed n` (the number of faults was decided beforehand) or
    `anytime-valid` (also where the study stopped by what it saw); the excess has the first kind. `design_effect` is how
    many times more variable the rate is than if every (fault, item) pair were independent. `effective_faults` is the
    effective sample size of the weights, (sum w)^2 / sum w^2, equal to `n_faults` where faults weigh the same.
    """

    estimate: float
    low: float
    high: float
    excess: float
    excess_low: float
    excess_high: float
    n_faults: int
    n_pairs: int
    design_effect: float
    interval: str
    effective_faults: float


class StratumRate(LabelledRate):
    """SDC rate of a stratum; `chance` is its share of the population, `trials` what it got, `n` of them with eligible
    items."""

    chance: float
    trials: int


class Golden(Record):
    """Fault-free answers: `accuracy` is right / with_reference; `aa_disagreements` items were not bit-identical
    when run again."""

    items: int
    with_reference: int
    right: int
    accuracy: float
    aa_disagreements: int | None


class Summary(Record):
    """What `--json` prints of a study. `outcomes` counts eligible (fault, item) pairs; `wrong_to_right` and
    `wrong_to_other` count pairs that golden answers wrong; `unreached` pairs whose moment never came. `proofs` are the
    shares of trials that each kind of proof ended early."""

    plan_digest: str
    records_digest: str
    trials: int
    planned: int
    sdc_rate: SdcRate
    any_sdc: Rate
    due_rate: Rate
    outcomes: dict[str, int]
    wrong_to_right: int
    wrong_to_other: int
    unreached: int
    noise_floor: Rate
    noise_outcomes: dict[str, int]
    golden: Golden
    proofs: dict[str, Rate]
    audit: Audit | None
    against_generate: AgainstGenerate | None
    groups: dict[str, tuple[LabelledRate, ...]]
    strata: tuple[StratumRate, ...]
    sweep: tuple[SweptRate, ...]
    curves: tuple[Curve, ...]
    sensitivity: Sensitivity | None
    degradation: DegradationModel | None
    search: Searched | None
    takeaways: tuple[Takeaway, ...]
    verdict: Verdict | None
    seconds: float

    def text(self) -> str:
        """The summary for a person."""
        sdc, golden = self.sdc_rate, self.golden
        lines = [
            f"SDC rate      {Rate(estimate=sdc.estimate, low=sdc.low, high=sdc.high, n=sdc.n_faults).text()}",
            f"  over noise  {100 * sdc.excess:+.2f} points ({100 * sdc.excess_low:+.2f} to "
            f"{100 * sdc.excess_high:+.2f}), floor {self.noise_floor.text()}",
            f"any SDC       {self.any_sdc.text()}",
            f"DUE rate      {self.due_rate.text()}",
            "outcomes      "
            + ", ".join(f"{name} {count}" for name, count in self.outcomes.items() if count)
            + f" of {sdc.n_pairs} eligible (fault, item) pairs; {self.unreached} unreached",
            f"golden        {golden.right} of {golden.with_reference} right, {golden.items} items, "
            f"{golden.aa_disagreements} differ when run again",
            f"records       {self.records_digest}",
        ]
        if any(rate.estimate for rate in self.proofs.values()):
            proved = ", ".join(f"{kind} {rate.text()}" for kind, rate in self.proofs.items())
            lines.insert(-1, f"proved early  {proved}")
        if self.audit is not None:
            lines.insert(-1, f"audit         {self.audit.text()}")
        if self.against_generate is not None:
            lines.insert(-1, f"generate      {self.against_generate.text()}")
        lines[-1:-1] = [f"  {one.text()}" for one in self.sweep]
        lines[-1:-1] = [f"  {one.text()}" for one in self.curves]
        if self.sensitivity is not None:
            lines.insert(-1, f"  {self.sensitivity.text()}")
        if self.degradation is not None:
            lines.insert(-1, f"  {self.degradation.text()}")
        tested = [one for one in self.takeaways if one.tested]
        if tested:
            held = (f"{one.number} {one.verdict}" for one in tested if one.verdict != "not enough evidence")
            lines.insert(-1, f"takeaways     {len(tested)} of 17 tested: {', '.join(held) or 'none decided'}")
        if self.strata:
            lines.insert(
                1,
                f"  weighted    {len(self.strata)} strata of {min(one.trials for one in self.strata)} to "
                f"{max(one.trials for one in self.strata)} trials, worth {sdc.effective_faults:.0f} equal faults",
            )
        if self.verdict is not None:
            lines.insert(1, f"  stopped by  {self.verdict.text()}")
            lines[0] += f", {sdc.interval}"
        if self.search is not None:
            lines[:0] = [self.search.text(), "", "of the probes, which the search chose (no rates of random bits):"]
        return "\n".join(lines)


def summarise(study: StoredStudy) -> Summary:
    """The summary of a study, complete or not. Where no item is eligible a rate is 0 with interval 0 to 1, n = 0."""
    trials = study.counted
    drawn = design(trials)
    pairs = [item for trial in trials for item in trial.eligible]
    everything = [item for trial in study.trials for item in trial.items]
    wrong = {record.item for record in study.golden if record.right is False}
    from_wrong = [item for item in everything if item.item in wrong and item.outcome not in {"unreached", *DUE}]
    referenced = [record for record in study.golden if record.right is not None]
    right = sum(record.right is True for record in referenced)
    return Summary(
        plan_digest=study.plan_digest,
        records_digest=study.records_digest,
        trials=len(study.trials),
        planned=study.planned,
        sdc_rate=_sdc_rate(study, drawn),
        any_sdc=_any_rate(_shares(trials, SDC), drawn),
        due_rate=mean_rate(_shares(trials, DUE), drawn),
        outcomes=_count(pairs),
        wrong_to_right=sum(item.right is True for item in from_wrong),
        wrong_to_other=sum(item.right is False and item.output is not None for item in from_wrong),
        unreached=sum(item.outcome == "unreached" for item in everything),
        noise_floor=mean_rate(np.array([_share(record.items, SDC) for record in study.noise])),
        noise_outcomes=_count(item for record in study.noise for item in record.items if item.eligible),
        golden=Golden(
            items=len(study.golden),
            with_reference=len(referenced),
            right=right,
            accuracy=right / max(len(referenced), 1),
            aa_disagreements=study.aa_disagreements,
        ),
        proofs={
            kind: mean_rate(np.array([trial.proof == kind for trial in trials], float), drawn)
            for kind in get_args(Proof)
        },
        audit=audit_of(study.audits),
        against_generate=against_generate(study),
        groups={name: _group(trials, drawn, label) for name, label in LABELS.items()},
        strata=() if drawn is None else _strata(trials, drawn),
        sweep=swept_rates(study),
        curves=sweep_curves(study),
        sensitivity=sensitivity(study),
        degradation=degradation_model(study),
        search=searched(study) if study.settings.search.values else None,
        takeaways=takeaways((study,)),
        verdict=study.verdict,
        seconds=study.seconds,
    )


def _sdc_rate(study: StoredStudy, drawn: Design | None) -> SdcRate:
    shares = _shares(study.counted, SDC)
    raw = mean_rate(shares, drawn)
    known = ~np.isnan(shares)
    trials = [trial for trial in study.counted if trial.eligible]
    weights = None if drawn is None else drawn.weights[known]
    excess = Estimate(0.0, -1.0, 1.0, 0)
    sweeps = study.noise_sweeps
    if trials and sweeps:
        # Row j: what each whole sweep of meaningless perturbations did to the very items that fault j saw.
        floor = [
            [sum(outcomes[item.item] in SDC for item in trial.eligible) / len(trial.eligible) for outcomes in sweeps]
            for trial in trials
        ]
        excess = paired_excess(shares[known], floor, study.settings.run.seed, weights=weights)
    counts = [len(trial.eligible) for trial in trials]
    anytime = study.verdict
    bounds = raw if anytime is None else anytime
    return SdcRate(
        estimate=bounds.estimate,
        low=bounds.low,
        high=bounds.high,
        excess=excess.estimate,
        excess_low=excess.low,
        excess_high=excess.high,
        n_faults=len(trials),
        n_pairs=sum(counts),
        design_effect=clustering(np.round(shares[known] * counts), counts).design_effect if trials else 1.0,
        interval="fixed n" if anytime is None else "anytime-valid",
        effective_faults=len(trials) if weights is None or not trials else effective_sample_size(weights),
    )


def _share(items: Iterable[ItemRecord], outcomes: frozenset[str]) -> float:
    eligible = [item.outcome in outcomes for item in items if item.eligible]
    return sum(eligible) / len(eligible) if eligible else float("nan")


def _shares(trials: Iterable[TrialRecord], outcomes: frozenset[str]) -> Floats:
    """Share of each trial, NaN where no item is eligible."""
    return np.array([_share(trial.items, outcomes) for trial in trials], dtype=np.float64)


def _any_rate(shares: Floats, drawn: Design | None) -> Rate:
    if drawn is not None or np.isnan(shares).all():
        return mean_rate(np.where(np.isnan(shares), np.nan, shares > 0), drawn)
    found = any_rate(shares)
    return Rate(estimate=found.estimate, low=found.low, high=found.high, n=found.n)


def _count(items: Iterable[ItemRecord]) -> dict[str, int]:
    counts = Counter(item.outcome for item in items)
    return {outcome: counts[outcome] for outcome in get_args(ItemOutcome)}


def _group(
    trials: Sequence[TrialRecord], drawn: Design | None, label: Callable[[TrialRecord], str | None]
) -> tuple[LabelledRate, ...]:
    """SDC rate of the faults of each label, in the labels' natural order; faults without the label are left out."""
    labels = [label(trial) for trial in trials]
    shares = np.where([name is None for name in labels], np.nan, _shares(trials, SDC)) if labels else np.empty(0)
    names = [name or "" for name in labels]
    estimates = by_label(names, shares) if drawn is None else weighted_by_label(names, shares, drawn)
    return tuple(
        LabelledRate(label=name, estimate=found.estimate, low=found.low, high=found.high, n=found.n)
        for name, found in sorted(estimates.items(), key=lambda pair: (len(pair[0]), pair[0]))
    )


def _strata(trials: Sequence[TrialRecord], drawn: Design) -> tuple[StratumRate, ...]:
    """Each stratum by itself, the likeliest first."""
    shares = _shares(trials, SDC)
    names = {number: trial.stratum or "" for number, trial in zip(drawn.strata.tolist(), trials, strict=True)}
    found = []
    for number in np.argsort(-drawn.chances, kind="stable").tolist():
        own = drawn.strata == number
        rate = mean_rate(shares[own])
        found.append(
            StratumRate(
                label=names[number],
                chance=float(drawn.chances[number]),
                trials=int(own.sum()),
                estimate=rate.estimate,
                low=rate.low,
                high=rate.high,
                n=rate.n,
            )
        )
    return tuple(found)
