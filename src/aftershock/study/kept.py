"""How much of its answers each trial keeps, beside golden's on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aftershock.study.rates import Floats
from aftershock.study.records import DUE, SDC, GoldenRecord, TrialRecord

Measure = Literal["accuracy", "kept"]
"""`accuracy`: share of right answers among those with a reference; `kept`: share of eligible answers that are neither
SDC nor DUE, 1 in golden."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Shares of trials, float64 of shape (trials,): under the fault, and golden's on the same items; NaN where no item
    counts."""

    faulty: Floats
    golden: Floats

    @property
    def loss(self) -> float:
        """Relative change of the mean: (golden's - faulty) / golden's, over the trials that have a share."""
        return float(np.nanmean(self.golden - self.faulty) / np.nanmean(self.golden))


def accuracies(trials: Sequence[TrialRecord], golden: Sequence[GoldenRecord]) -> Kept:
    """Shares of answers that are right, among those with a reference."""
    right = {record.item: record.right for record in golden if record.right is not None}
    seen = [[item for item in trial.items if item.item in right] for trial in trials]
    return Kept(
        np.array([np.mean([item.right is True for item in items]) if items else np.nan for items in seen]),
        np.array([np.mean([right[item.item] for item in items]) if items else np.nan for items in seen]),
    )


def kept(trials: Sequence[TrialRecord]) -> Kept:
    """Shares of eligible answers that are neither SDC nor DUE."""
    lost = SDC | DUE
    counted = [trial.eligible for trial in trials]
    return Kept(
        np.array([np.mean([item.outcome not in lost for item in items]) if items else np.nan for items in counted]),
        np.array([1.0 if items else np.nan for items in counted]),
    )


def measure_of(golden: Sequence[GoldenRecord]) -> Measure:
    """Accuracy where golden answers something right, else what is kept."""
    return "accuracy" if any(record.right for record in golden) else "kept"


def kept_by(measure: Measure, trials: Sequence[TrialRecord], golden: Sequence[GoldenRecord]) -> Kept:
    """Shares of trials by one measure."""
    return accuracies(trials, golden) if measure == "accuracy" else kept(trials)
