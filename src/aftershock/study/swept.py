"""What each combination of a sweep came to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aftershock.faults import Selection, combinations, sweep_name, sweep_value
from aftershock.study.kept import accuracies
from aftershock.study.rates import Rate, mean_rate
from aftershock.study.records import DUE, SDC, GoldenRecord, Record, TrialRecord
from aftershock.study.store import StoredStudy


class SweptRate(Record):
    """One combination: its values as written, its trials, and its rates over them.

    `lost` is the share of golden's right answers (of its answers, where they have no reference) that end as SDC or DUE:
    LLMFI's measure. `accuracy` is the share of answers that are right among those with a reference, None where no item
    has one; `relative_loss`, with its interval, is (golden's accuracy - this) / golden's, golden's on the same items
    (UCLA study, section 6: relative change in accuracy), None where golden has none right. All are means over faults.
    """

    values: dict[str, str]
    trials: int
    sdc: Rate
    due: Rate
    lost: Rate
    accuracy: Rate | None
    relative_loss: tuple[float, float, float] | None

    def text(self) -> str:
        """`rate = 1e-05: SDC 3.12 % (...), DUE ..., accuracy ...`."""
        values = ", ".join(f"{key} = {value}" for key, value in self.values.items())
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy.text()}"
        return f"{values}: SDC {self.sdc.text()}, DUE {self.due.text()}{accuracy}"


@dataclass(frozen=True)
class Combination:
    """One combination of a sweep: the values of its keys, the selection that they make, its trials."""

    values: dict[str, Any]
    selection: Selection
    trials: tuple[TrialRecord, ...]


def swept_trials(study: StoredStudy) -> Iterator[Combination]:
    """Every combination, in the sweep's order; none of a study without a sweep."""
    by_name: dict[str, list[TrialRecord]] = {}
    for trial in study.trials:
        by_name.setdefault(trial.stratum or "", []).append(trial)
    if study.settings.sweep:
        for values, selection in combinations(study.settings.faults, study.settings.sweep):
            yield Combination(values, selection, tuple(by_name.get(sweep_name(values), ())))


def swept_rates(study: StoredStudy) -> tuple[SweptRate, ...]:
    """Those of every combination, in the sweep's order; none of a study without a sweep."""
    return tuple(_rate_of(one, study.golden) for one in swept_trials(study))


def _rate_of(one: Combination, golden: Sequence[GoldenRecord]) -> SweptRate:
    right = accuracies(one.trials, golden)
    accuracy = loss = None
    if not np.isnan(right.faulty).all():
        accuracy, clean = mean_rate(right.faulty), float(np.nanmean(right.golden))
        if clean > 0:
            estimate, low, high = (1 - bound / clean for bound in (accuracy.estimate, accuracy.high, accuracy.low))
            loss = (estimate, low, high)
    return SweptRate(
        values={key: sweep_value(value) for key, value in one.values.items()},
        trials=len(one.trials),
        sdc=_share_rate(one.trials, SDC),
        due=_share_rate(one.trials, DUE),
        lost=_share_rate(one.trials, SDC | DUE),
        accuracy=accuracy,
        relative_loss=loss,
    )


def _share_rate(trials: Sequence[TrialRecord], outcomes: frozenset[str]) -> Rate:
    shares = [
        np.mean([item.outcome in outcomes for item in trial.eligible]) if trial.eligible else np.nan for trial in trials
    ]
    return mean_rate(np.array(shares, dtype=np.float64))
