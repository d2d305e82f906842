"""Rounds of trials: what is run before the study is looked at, and spread over the strata, anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aftershock.faults import Stratum
from aftershock.stats import neyman_allocation, stratum_variances
from aftershock.study.plan import Plan, Round
from aftershock.study.probes import next_probes_of
from aftershock.study.records import TrialRecord
from aftershock.study.verdict import Verdict, design, sdc_shares, verdict_at


@dataclass(frozen=True)
class Block:
    """Trials to run next, in any order and anywhere, by a plan that knows their strata; no trial: the study is done."""

    plan: Plan
    trials: tuple[int, ...]


def next_block(plan: Plan, records: Sequence[TrialRecord]) -> Block:
    """What is missing of the first round that is not complete, or what a search tries next; nothing where a rule ended
    the study or none is left.

    A pure function of the plan and of the records of complete rounds: however often a study is killed, in whatever
    order and on however many machines its trials are run, it comes to the same trials.
    """
    stored = {record.trial: record for record in records}
    if plan.settings.search.values:
        return Block(plan, next_probes_of(plan, stored))
    plan, begin = replace(plan, rounds=plan.rounds[:1]), 0
    for end in plan.settings.round_ends:
        if begin:
            past = [stored[trial] for trial in range(begin)]
            seen = verdict_at(plan.settings, past)
            if seen is not None and seen.decided:
                break
            if plan.strata:
                counts = allocation(plan.strata, past, seen, end - begin)
                plan = replace(plan, rounds=(*plan.rounds, Round(begin, counts)))
        missing = tuple(trial for trial in range(begin, end) if trial not in stored)
        if missing:
            return Block(plan, missing)
        begin = end
    return Block(plan, ())


def allocation(
    strata: Sequence[Stratum], past: Sequence[TrialRecord], seen: Verdict | None, trials: int
) -> tuple[int, ...]:
    """How many of a round's trials each stratum gets: by Neyman's rule, from the records of the rounds before.

    Where components are ranked, spread counts by what it does to the component's own rate, and only while its place in
    the order is open.
    """
    drawn = design(past)
    assert drawn is not None
    number_of = {record.stratum: number for record, number in zip(past, drawn.strata.tolist(), strict=True)}
    variances = stratum_variances(sdc_shares(past), drawn)
    spreads = np.sqrt(variances[[number_of[stratum.name] for stratum in strata]])
    if seen is not None and seen.undecided is not None:
        components = [stratum.component for stratum in strata]
        totals = {name: sum(s.chance for s in strata if s.component == name) for name in set(components)}
        spreads *= [float(name in seen.undecided) / totals[name] for name in components]
    return tuple(neyman_allocation([stratum.chance for stratum in strata], spreads, trials).tolist())
