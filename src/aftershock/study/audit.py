"""Which trials the reference executor repeats, and what their agreement proves."""

from collections.abc import Sequence
from math import ceil

from aftershock.faults import distinct
from aftershock.numerics import generator
from aftershock.stats import rule_of_three, wilson
from aftershock.study.records import Record, TrialRecord

FEWEST = 20
"""Trials that are audited at least, where there are so many."""


class Audit(Record):
    """Trials repeated by the reference executor; `bound` is the upper 95 % bound on the share that would disagree."""

    trials: int
    disagreements: int
    bound: float

    def text(self) -> str:
        """`20 trials repeated by the reference executor, 0 disagree (the share is below 13.91 % with ...)`."""
        return (
            f"{self.trials} trials repeated by the reference executor, {self.disagreements} disagree "
            f"(the share is below {100 * self.bound:.2f} % with 95 % confidence)"
        )


def audit_count(trials: int, share: float) -> int:
    """How many of so many trials are repeated: `share` of them, at least FEWEST; none for a share of 0."""
    return min(trials, max(FEWEST, ceil(share * trials))) if share else 0


def audited_trials(trials: Sequence[TrialRecord], share: float, seed: int) -> tuple[int, ...]:
    """The trials to repeat: `share` of all, at least FEWEST, half of them of those in which some answer changed.

    A function of the records and the seed alone. A share of 0 audits none.
    """
    count = audit_count(len(trials), share)
    if not count:
        return ()
    changed = [record.trial for record in trials if any(item.output is not None for item in record.items)]
    drawn = _drawn(changed, min(len(changed), -(-count // 2)), seed, "audit of changed answers")
    others = [record.trial for record in trials if record.trial not in drawn]
    return tuple(sorted({*drawn, *_drawn(others, count - len(drawn), seed, "audit")}))


def _drawn(trials: Sequence[int], count: int, seed: int, purpose: str) -> set[int]:
    places = distinct(generator(seed, 0, purpose), len(trials), count)
    return {trials[place] for place in places.tolist()}


def audit_of(audits: dict[int, bool]) -> Audit | None:
    """What the audited trials prove; None where there are none."""
    if not audits:
        return None
    failed = sum(not agrees for agrees in audits.values())
    bound = rule_of_three(len(audits)) if failed == 0 else wilson(failed, len(audits)).high
    return Audit(trials=len(audits), disagreements=failed, bound=bound)
