"""Two studies side by side: what was set differently, and whether the rates differ by more than chance."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aftershock.stats import Comparison, Estimate, paired_difference, rate_difference, unpaired_difference
from aftershock.study.rates import Rate
from aftershock.study.records import Record, TrialRecord
from aftershock.study.store import StoredStudy
from aftershock.study.summary import LABELS, SdcRate, summarise


class Difference(Record):
    """Second minus first SDC rate. `paired` where both studies hold the same faults on the same items, then `n` counts
    those faults, else the faults of both. `p_value` is the chance of so large a difference if there were none."""

    estimate: float
    low: float
    high: float
    n: int
    p_value: float
    paired: bool


class SideBySide(Record):
    """One rate in both studies; None where a study has no such faults."""

    name: str
    first: Rate | None
    second: Rate | None


class StudyComparison(Record):
    """What `diff` prints. `settings` maps each setting that differs to its two values."""

    first: str
    second: str
    same_plan: bool
    same_records: bool
    settings: dict[str, tuple[str, str]]
    rates: tuple[SideBySide, ...]
    difference: Difference | None
    changed_outcomes: int | None

    def text(self) -> str:
        """The comparison for a person."""
        lines = [f"first   {self.first}", f"second  {self.second}", ""]
        if self.same_plan:
            lines.append(
                "plans      the same" + ("; records the same too" if self.same_records else "; records differ")
            )
        for name, (one, other) in self.settings.items():
            lines.append(f"{name}: {one} | {other}")
        lines.append("")
        for side in self.rates:
            one, other = ("-" if rate is None else rate.text() for rate in (side.first, side.second))
            lines.append(f"{side.name:24} {one:42} {other}")
        if self.difference is None:
            lines.append("\nno study has a fault with an eligible item: nothing to compare")
        else:
            d = self.difference
            how = f"paired by {d.n} faults" if d.paired else f"unpaired, {d.n} faults in all"
            verdict = "more than chance" if d.low > 0 or d.high < 0 else "chance can't be ruled out"
            lines.append(
                f"\nSDC rate, second minus first: {100 * d.estimate:+.2f} points ({100 * d.low:+.2f} to "
                f"{100 * d.high:+.2f}), {how}, p = {d.p_value:.3g}: {verdict}"
            )
        if self.changed_outcomes is not None:
            lines.append(f"outcomes that differ on the same fault and item: {self.changed_outcomes}")
        return "\n".join(lines)


def compare_studies(first: StoredStudy, second: StoredStudy) -> StudyComparison:
    """Compare two studies, complete or not."""
    pairs = _same_faults(first, second)
    ours, theirs = summarise(first), summarise(second)
    rates = [
        SideBySide(
            name="SDC rate",
            first=_plain(ours.sdc_rate, ours.sdc_rate.n_faults),
            second=_plain(theirs.sdc_rate, theirs.sdc_rate.n_faults),
        ),
        SideBySide(name="any SDC", first=ours.any_sdc, second=theirs.any_sdc),
        SideBySide(name="DUE rate", first=ours.due_rate, second=theirs.due_rate),
        SideBySide(name="noise floor", first=ours.noise_floor, second=theirs.noise_floor),
    ]
    for group in LABELS:
        one = {rate.label: rate for rate in ours.groups[group]}
        other = {rate.label: rate for rate in theirs.groups[group]}
        rates += [
            SideBySide(name=f"{group} {label}", first=one.get(label), second=other.get(label))
            for label in dict.fromkeys([*one, *other])
        ]
    return StudyComparison(
        first=str(first.folder),
        second=str(second.folder),
        same_plan=first.plan_digest == second.plan_digest,
        same_records=first.records_digest == second.records_digest,
        settings=_changed(_flat(first), _flat(second)),
        rates=tuple(rates),
        difference=_weighted_difference(ours.sdc_rate, theirs.sdc_rate)
        if "neyman" in (first.settings.run.plan, second.settings.run.plan)
        else _difference(first, second, pairs),
        changed_outcomes=sum(map(_changed_items, *zip(*pairs, strict=True))) if pairs else None,
    )


def _plain(rate: Any, n: int) -> Rate:
    return Rate(estimate=rate.estimate, low=rate.low, high=rate.high, n=n)


def _same_faults(first: StoredStudy, second: StoredStudy) -> list[tuple[TrialRecord, TrialRecord]]:
    """Trials of both studies with the same number, faults and items."""
    theirs = {trial.trial: trial for trial in second.trials}
    return [
        (trial, other)
        for trial in first.trials
        if (other := theirs.get(trial.trial)) is not None
        and (trial.faults, trial.fault_count) == (other.faults, other.fault_count)
        and [item.item for item in trial.items] == [item.item for item in other.items]
    ]


def _difference(
    first: StoredStudy, second: StoredStudy, pairs: list[tuple[TrialRecord, TrialRecord]]
) -> Difference | None:
    known = [(a.sdc_share, b.sdc_share) for a, b in pairs if a.eligible and b.eligible]
    seed = first.settings.run.seed
    # Pairing is worth it only when it covers the studies, not a chance coincidence of a few faults.
    if known and 2 * len(pairs) >= max(len(first.trials), len(second.trials)):
        before, after = np.array(known, dtype=np.float64).T
        return _described(paired_difference(before, after, seed), paired=True)
    before, after = (
        np.array([trial.sdc_share for trial in study.trials if trial.eligible], dtype=np.float64)
        for study in (first, second)
    )
    if not (before.size and after.size):
        return None
    return _described(unpaired_difference(before, after, seed), paired=False)


def _weighted_difference(one: SdcRate, other: SdcRate) -> Difference | None:
    """Of two studies of which at least one is stratified: from both rates, as if they had no fault in common."""
    if not (one.n_faults and other.n_faults):
        return None
    before, after = (Estimate(rate.estimate, rate.low, rate.high, rate.n_faults) for rate in (one, other))
    return _described(rate_difference(before, after), paired=False)


def _described(found: Comparison, *, paired: bool) -> Difference:
    one = found.difference
    return Difference(estimate=one.estimate, low=one.low, high=one.high, n=one.n, p_value=found.p_value, paired=paired)


def _changed_items(first: TrialRecord, second: TrialRecord) -> int:
    return sum(a.outcome != b.outcome for a, b in zip(first.items, second.items, strict=True))


def _flat(study: StoredStudy) -> dict[str, str]:
    """Settings and circumstances as `table.key` -> text."""
    content = {**study.settings.model_dump(mode="json"), "environment": study.environment.model_dump(mode="json")}
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = str(value)

    walk("", content)
    return flat


def _changed(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {
        key: (first.get(key, "-"), second.get(key, "-"))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }
