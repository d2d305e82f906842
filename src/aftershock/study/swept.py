"""What each combination of a sweep came to."""

from collections.abc import Sequence

import numpy as np

from aftershock.faults import combinations, sweep_name, sweep_value
from aftershock.study.rates import Rate, mean_rate
from aftershock.study.records import DUE, SDC, Record, TrialRecord
from aftershock.study.store import StoredStudy


class SweptRate(Record):
    """One combination: its values as written, its trials, and its rates over them.

    `accuracy` is the share of answers that are right among those with a reference, mean over faults, None where no item
    has one; `relative_loss`, with its interval, is (golden's accuracy - this) / golden's, golden's on the same items
    (UCLA study, section 6: relative change in accuracy), None where golden has none right.
    """

    values: dict[str, str]
    trials: int
    sdc: Rate
    due: Rate
    accuracy: Rate | None
    relative_loss: tuple[float, float, float] | None

    def text(self) -> str:
        """`rate = 1e-05: SDC 3.12 % (...), DUE ..., accuracy ...`."""
        values = ", ".join(f"{key} = {value}" for key, value in self.values.items())
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy.text()}"
        return f"{values}: SDC {self.sdc.text()}, DUE {self.due.text()}{accuracy}"


def swept_rates(study: StoredStudy) -> tuple[SweptRate, ...]:
    """Those of every combination, in the sweep's order; none of a study without a sweep."""
    if not study.settings.sweep:
        return ()
    by_name: dict[str, list[TrialRecord]] = {}
    for trial in study.trials:
        by_name.setdefault(trial.stratum or "", []).append(trial)
    return tuple(
        _rate_of({key: sweep_value(value) for key, value in values.items()}, by_name.get(sweep_name(values), []), study)
        for values, _ in combinations(study.settings.faults, study.settings.sweep)
    )


def _rate_of(values: dict[str, str], trials: Sequence[TrialRecord], study: StoredStudy) -> SweptRate:
    referenced = {record.item: record.right for record in study.golden if record.right is not None}
    seen = [[item for item in trial.items if item.item in referenced] for trial in trials]
    right = [float(np.mean([item.right is True for item in items])) for items in seen if items]
    clean = [float(np.mean([referenced[item.item] for item in items])) for items in seen if items]
    accuracy, golden, loss = None, 0.0, None
    if right:
        accuracy, golden = mean_rate(np.array(right)), float(np.mean(clean))
    if accuracy is not None and golden > 0:
        estimate, low, high = (1 - bound / golden for bound in (accuracy.estimate, accuracy.high, accuracy.low))
        loss = (estimate, low, high)
    return SweptRate(
        values=values,
        trials=len(trials),
        sdc=_share_rate(trials, SDC),
        due=_share_rate(trials, DUE),
        accuracy=accuracy,
        relative_loss=loss,
    )


def _share_rate(trials: Sequence[TrialRecord], outcomes: frozenset[str]) -> Rate:
    shares = [
        np.mean([item.outcome in outcomes for item in trial.eligible]) if trial.eligible else np.nan for trial in trials
    ]
    return mean_rate(np.array(shares, dtype=np.float64))
