"""What a study's rule says of it: looked at after each complete round, and at no other time."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from aftershock.stats import Design, Estimate, anytime_interval, design_of
from aftershock.study.records import Record, TrialRecord
from aftershock.study.rules import Rule
from aftershock.study.settings import StudySettings

CONFIDENCE = 0.95


class Ranked(Record):
    """A component in the order of the SDC rates, highest first. The intervals of all components hold together, at every
    look. `apart` tells whether it is known to lie above the next one; None for the last."""

    component: str
    estimate: float
    low: float
    high: float
    n: int
    apart: bool | None


class Verdict(Record):
    """What the rule says after `trials` trials, at look number `looks`.

    `estimate`, `low` and `high` are the SDC rate and its anytime-valid 95 % interval. `ranking` holds the components
    where they are ranked, `undecided` those whose place is open (None where the rule ranks nothing).
    """

    rule: str
    decided: bool
    reason: str
    looks: int
    trials: int
    estimate: float
    low: float
    high: float
    n: int
    ranking: tuple[Ranked, ...] = ()
    undecided: tuple[str, ...] | None = None

    def text(self) -> str:
        """What the rule says, for a person; one line, then one for each component ranked."""
        lines = [f"{self.rule}, look {self.looks} after {self.trials:,} trials: {self.reason}"]
        for place, one in enumerate(self.ranking, 1):
            after = "" if one.apart is None else ", above the next" if one.apart else ", next not told apart"
            lines.append(
                f"    {place:2} {one.component:18} {100 * one.estimate:.2f} % ({100 * one.low:.2f} to "
                f"{100 * one.high:.2f}, n = {one.n}){after}"
            )
        return "\n".join(lines)


def design(records: Sequence[TrialRecord]) -> Design | None:
    """How the trials of complete rounds of a stratified study were drawn; None for trials drawn uniformly."""
    known = [(one.stratum, one.stratum_chance, one.round) for one in records]
    strata, chances, rounds = (list(column) for column in zip(*known, strict=True)) if known else ([], [], [])
    if None in strata or None in chances or None in rounds or not known:
        return None
    return design_of(strata, chances, rounds)


def sdc_shares(records: Sequence[TrialRecord]) -> npt.NDArray[np.float64]:
    """SDC share of each trial, NaN where no item is eligible."""
    return np.array([np.nan if one.sdc_share is None else one.sdc_share for one in records], dtype=np.float64)


def verdict(settings: StudySettings, records: Sequence[TrialRecord]) -> Verdict | None:
    """The verdict at which the study ended, or the latest one; None without a rule or a complete round."""
    stored = {record.trial: record for record in records}
    found = None
    for end in settings.round_ends:
        past = [stored[trial] for trial in range(end) if trial in stored]
        if len(past) < end:
            break
        found = verdict_at(settings, past)
        if found is not None and found.decided:
            break
    return found


def verdict_at(settings: StudySettings, records: Sequence[TrialRecord]) -> Verdict | None:
    """The verdict after the complete rounds that `records` are, in the order of the trials; None without a rule."""
    rule = settings.run.rule
    if rule is None:
        return None
    shares, drawn = sdc_shares(records), design(records) or _uniform(settings, len(records))
    rate = anytime_interval(shares, rule.margin, drawn, CONFIDENCE)
    looks = sum(end <= len(records) for end in settings.round_ends)
    last = looks == len(settings.round_ends)
    ranking = _ranking(settings, rule, records, shares, drawn) if rule.ranks else ()
    undecided = _undecided(rule, settings.faults.components, ranking) if rule.ranks else None
    if rule.ranks:
        decided = not undecided
        ties = sum(one.apart is False for one in ranking)
        reason = (
            f"the order of {len(ranking)} components is decided, {ties} neighbours equal within "
            f"±{100 * rule.margin:g} points"
            if decided
            else f"the places of {', '.join(undecided or ())} are open"
        )
    else:
        half = _half_width(rate)
        decided = half <= rule.margin
        reason = f"the SDC rate is known to ±{100 * half:.2f} points, ±{100 * rule.margin:g} were asked for"
    if last and not decided:
        reason = f"the largest number of trials is reached; {reason}"
    return Verdict(
        rule=str(rule),
        decided=decided,
        reason=reason,
        looks=looks,
        trials=len(records),
        estimate=rate.estimate,
        low=rate.low,
        high=rate.high,
        n=rate.n,
        ranking=ranking,
        undecided=undecided,
    )


def _uniform(settings: StudySettings, trials: int) -> Design:
    rounds = np.searchsorted(settings.round_ends, np.arange(trials), side="right")
    return Design(np.zeros(trials, dtype=np.int64), np.ones(1), rounds.astype(np.int64))


def _half_width(rate: Estimate | Ranked) -> float:
    """The larger distance from the estimate to a bound."""
    return max(rate.high - rate.estimate, rate.estimate - rate.low)


def _ranking(
    settings: StudySettings,
    rule: Rule,
    records: Sequence[TrialRecord],
    shares: npt.NDArray[np.float64],
    drawn: Design,
) -> tuple[Ranked, ...]:
    """Components by falling rate. Each interval misses with a share of 5 %, so that all of them hold together."""
    components = np.array([record.component for record in records])
    names = settings.faults.components
    confidence = 1 - (1 - CONFIDENCE) / len(names)
    found: list[tuple[str, Estimate]] = []
    for name in names:
        own = components == name
        if own.any():
            rate = anytime_interval(shares[own], rule.margin, drawn.part(own), confidence)
            found.append((name, rate))
    found.sort(key=lambda pair: (-pair[1].estimate, pair[0]))
    apart = [one.low > other.high for (_, one), (_, other) in pairwise(found)]
    return tuple(
        Ranked(component=name, estimate=rate.estimate, low=rate.low, high=rate.high, n=rate.n, apart=above)
        for (name, rate), above in zip(found, [*apart, None], strict=True)
    )


def _undecided(rule: Rule, components: Sequence[str], ranking: Sequence[Ranked]) -> tuple[str, ...]:
    """Components without a rate, and neighbours that are neither apart nor both known to the margin."""
    places = set(components) - {one.component for one in ranking}
    for one, other in pairwise(ranking):
        if not one.apart and max(_half_width(one), _half_width(other)) > rule.margin:
            places |= {one.component, other.component}
    return tuple(sorted(places))
