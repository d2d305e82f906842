"""A study in numbers: rates with intervals over faults, raw and over the noise floor."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import get_args

import numpy as np

from aftershock.stats import Estimate, any_rate, by_label, cluster_interval, clustering, paired_excess
from aftershock.study.audit import Audit, audit_of
from aftershock.study.records import DUE, SDC, ItemOutcome, ItemRecord, Record, TrialRecord
from aftershock.study.store import StoredStudy

LABELS = MappingProxyType[str, Callable[[TrialRecord], str | None]](
    {
        "site": lambda trial: trial.site,
        "component": lambda trial: trial.component,
        "layer": lambda trial: None if trial.layer is None else str(trial.layer),
        "stage": lambda trial: trial.stage,
        "bit_class": lambda trial: trial.bit_class,
        "bit": lambda trial: str(trial.bits[0]) if len(trial.bits) == 1 else None,
    }
)
"""What the SDC rate is broken down by; None where a fault has no such label."""


class Rate(Record):
    """A share with its 95 % interval; `n` independent units (faults, perturbations) went into it."""

    estimate: float
    low: float
    high: float
    n: int

    def text(self) -> str:
        """`3.12 % (1.20 to 6.04, n = 80)`."""
        return f"{100 * self.estimate:.2f} % ({100 * self.low:.2f} to {100 * self.high:.2f}, n = {self.n})"


class SdcRate(Record):
    """The SDC rate: mean over faults of the share of eligible items, and what of it the noise floor leaves.

    `design_effect` is how many times more variable the rate is than if every (fault, item) pair were independent.
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


class LabelledRate(Rate):
    """SDC rate of the faults that share a label."""

    label: str


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
    `wrong_to_other` count pairs that golden answers wrong; `unreached` pairs whose moment never came."""

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
    audit: Audit | None
    groups: dict[str, tuple[LabelledRate, ...]]
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
        if self.audit is not None:
            lines.insert(-1, f"audit         {self.audit.text()}")
        return "\n".join(lines)


def summarise(study: StoredStudy) -> Summary:
    """The summary of a study, complete or not. Where no item is eligible a rate is 0 with interval 0 to 1, n = 0."""
    trials = [trial for trial in study.trials if trial.eligible]
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
        sdc_rate=_sdc_rate(study, trials),
        any_sdc=_rate(any_rate, _shares(trials, SDC)),
        due_rate=_rate(cluster_interval, _shares(trials, DUE)),
        outcomes=_count(pairs),
        wrong_to_right=sum(item.right is True for item in from_wrong),
        wrong_to_other=sum(item.right is False and item.output is not None for item in from_wrong),
        unreached=sum(item.outcome == "unreached" for item in everything),
        noise_floor=_rate(cluster_interval, [_share(record.items, SDC) for record in study.noise]),
        noise_outcomes=_count(item for record in study.noise for item in record.items if item.eligible),
        golden=Golden(
            items=len(study.golden),
            with_reference=len(referenced),
            right=right,
            accuracy=right / max(len(referenced), 1),
            aa_disagreements=study.aa_disagreements,
        ),
        audit=audit_of(study.audits),
        groups={name: _group(trials, label) for name, label in LABELS.items()},
        seconds=study.seconds,
    )


def _sdc_rate(study: StoredStudy, trials: Sequence[TrialRecord]) -> SdcRate:
    shares = _shares(trials, SDC)
    raw = _rate(cluster_interval, shares)
    excess = Estimate(0.0, -1.0, 1.0, 0)
    if trials and study.noise:
        # Row j: what each whole sweep of meaningless perturbations did to the very items that fault j saw.
        sweeps: dict[int, dict[str, bool]] = {}
        for record in study.noise:
            corrupted = sweeps.setdefault(record.sweep, {})
            corrupted.update((item.item, item.outcome in SDC) for item in record.items)
        whole = [corrupted for corrupted in sweeps.values() if len(corrupted) == len(study.golden)]
        floor = [
            [sum(corrupted[item.item] for item in trial.eligible) / len(trial.eligible) for corrupted in whole]
            for trial in trials
        ]
        excess = paired_excess(shares, floor, study.settings.run.seed)
    counts = [len(trial.eligible) for trial in trials]
    return SdcRate(
        estimate=raw.estimate,
        low=raw.low,
        high=raw.high,
        excess=excess.estimate,
        excess_low=excess.low,
        excess_high=excess.high,
        n_faults=len(trials),
        n_pairs=sum(counts),
        design_effect=clustering(np.round(np.array(shares) * counts), counts).design_effect if trials else 1.0,
    )


def _share(items: Iterable[ItemRecord], outcomes: frozenset[str]) -> float:
    eligible = [item.outcome in outcomes for item in items if item.eligible]
    return sum(eligible) / len(eligible) if eligible else float("nan")


def _shares(trials: Iterable[TrialRecord], outcomes: frozenset[str]) -> list[float]:
    return [_share(trial.items, outcomes) for trial in trials]


def _rate(estimator: Callable[[Sequence[float]], Estimate], shares: Sequence[float]) -> Rate:
    known = [share for share in shares if not math.isnan(share)]
    if not known:
        return Rate(estimate=0.0, low=0.0, high=1.0, n=0)
    found = estimator(known)
    return Rate(estimate=found.estimate, low=found.low, high=found.high, n=found.n)


def _count(items: Iterable[ItemRecord]) -> dict[str, int]:
    counts = Counter(item.outcome for item in items)
    return {outcome: counts[outcome] for outcome in get_args(ItemOutcome)}


def _group(trials: Sequence[TrialRecord], label: Callable[[TrialRecord], str | None]) -> tuple[LabelledRate, ...]:
    """SDC rate of the faults of each label, in the labels' natural order; faults without the label are left out."""
    labelled = [(name, trial) for trial in trials if (name := label(trial)) is not None]
    estimates = by_label([name for name, _ in labelled], _shares([trial for _, trial in labelled], SDC))
    return tuple(
        LabelledRate(label=name, estimate=found.estimate, low=found.low, high=found.high, n=found.n)
        for name, found in sorted(estimates.items(), key=lambda pair: (len(pair[0]), pair[0]))
    )
