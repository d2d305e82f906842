"""Faults tried again under protections: those that did harm under each candidate, and fresh ones under a chosen set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aftershock.protect.configs import FiniteScreen, Protection, RangeGuard
from aftershock.protect.planner.candidates import Candidate, looks, may_act
from aftershock.protect.planner.measured import detected_by, protected_records, reference
from aftershock.protect.planner.record import BeforeAfter, Fresh, rate_of
from aftershock.replay import FastExecutor
from aftershock.stats import cluster_interval, mcnemar, paired_difference, wilson
from aftershock.study import DUE, Plan, TrialRecord, trial_records

Flags = npt.NDArray[np.bool_]


def removal(
    plan: Plan, records: Sequence[TrialRecord], offered: Sequence[Candidate], say: Callable[[str], None]
) -> Flags:
    """Which recorded faults do no harm any more under which candidate, bool of shape (records, candidates): all checks
    look at each fault once, and each candidate that might help is then tried by itself; one range guard where all of
    them together help. To see a fault is not to undo it: what turned into NaN before is seen everywhere after."""
    trials = [plan.trial(one.trial) for one in records]
    looking = [number for number, one in enumerate(offered) if looks(one.protection)]
    say(f"looking at {len(trials)} harmful faults with {len(looking)} checks")
    helps = np.array(
        [
            [may_act(one.protection, trial, record.component) for one in offered]
            for trial, record in zip(trials, records, strict=True)
        ]
    )
    for row, detection in enumerate(detected_by(plan, trials, [offered[number].protection for number in looking])):
        helps[row, looking] &= [bool(one.sites) for one in detection.seen]
    plain = reference(plan)

    def removed(protection: Protection, may: Flags) -> Flags:
        tried = [trial for trial, one in zip(trials, may, strict=True) if one]
        found = shares(protected_records(plan, tried, [protection], plain))
        return np.array([found.get(trial.number, 1.0) == 0 for trial in trials])

    guards = [number for number, one in enumerate(offered) if isinstance(one.protection, RangeGuard)]
    if helps[:, guards].any():
        say("all range guards at once")
        seen: Flags = np.logical_or.reduce(helps[:, guards], axis=1)
        helps[:, guards] &= removed(_one_guard(offered), seen)[:, None]
    removes = np.zeros_like(helps)
    for number, candidate in enumerate(offered):
        if helps[:, number].any():
            say(f"{candidate.name}: {helps[:, number].sum()} faults again")
            removes[:, number] = removed(candidate.protection, helps[:, number])
    return removes


def _one_guard(offered: Sequence[Candidate]) -> RangeGuard:
    """All range guards as one."""
    guards = (one.protection for one in offered)
    return RangeGuard({name: own for one in guards if isinstance(one, RangeGuard) for name, own in one.bounds.items()})


def caused(
    plan: Plan, records: Sequence[TrialRecord], offered: Sequence[Candidate], say: Callable[[str], None]
) -> Flags:
    """Which recorded faults make more answers wrong in silence under which candidate than without it, bool of shape
    (records, candidates). What limits values may: an answer that ended in NaN told so by itself."""
    trials = [plan.trial(one.trial) for one in records]
    plain = reference(plan)
    causes = np.zeros((len(trials), len(offered)), dtype=bool)
    for number, candidate in enumerate(offered):
        if trials and isinstance(candidate.protection, RangeGuard | FiniteScreen):
            say(f"{candidate.name}: {len(trials)} faults that showed by themselves")
            found = shares(protected_records(plan, trials, [candidate.protection], plain))
            causes[:, number] = [found[one.trial] > (one.sdc_share or 0.0) for one in records]
    return causes


def due_share(record: TrialRecord) -> float:
    """Share of a trial's answers that show by themselves that they are wrong."""
    eligible = record.eligible
    return sum(item.outcome in DUE for item in eligible) / len(eligible) if eligible else 0.0


def recorded(trials: Sequence[TrialRecord], after: Mapping[int, float]) -> BeforeAfter:
    """SDC rate of recorded trials, and with the shares that some, by number, have `after`."""
    before = {one.trial: one.sdc_share for one in trials if one.sdc_share is not None}
    found = [after.get(number, share) for number, share in before.items()]
    return BeforeAfter(before=rate_of(cluster_interval(list(before.values()))), after=rate_of(cluster_interval(found)))


def fresh_faults(plan: Plan, protections: Sequence[Protection], count: int, say: Callable[[str], None]) -> Fresh:
    """Faults of the plan's selection from another seed, on the same batches, without and with protections."""
    run = plan.settings.run
    seed = (run.seed + 1) % 2**63
    update = {"run": run.model_copy(update={"seed": seed, "trials": count, "until": "", "traced": 0})}
    fresh = replace(plan, settings=plan.settings.model_copy(update=update))
    trials = [fresh.trial(number) for number in range(count)]
    say(f"{count} fresh faults, without protections")
    before = shares(trial_records(FastExecutor(plan.model), fresh, trials))
    say(f"{count} fresh faults, with {len(protections)} protections")
    after = shares(protected_records(fresh, trials, protections))
    pairs = np.array([(share, after[number]) for number, share in sorted(before.items())])
    moved = paired_difference(pairs[:, 0], pairs[:, 1], seed)
    harmed, still = pairs[:, 0] > 0, pairs[:, 1] > 0
    mended, caused = int((harmed & ~still).sum()), int((still & ~harmed).sum())
    seen = detected_by(fresh, [trial for trial in trials if before[trial.number] > 0], protections)
    noticed = sum(any(one.sites for one in detection.seen) for detection in seen)
    return Fresh(
        before=rate_of(cluster_interval(pairs[:, 0])),
        after=rate_of(cluster_interval(pairs[:, 1])),
        trials=count,
        seed=seed,
        difference=rate_of(moved.difference),
        p_value=moved.p_value,
        mended=mended,
        caused=caused,
        mcnemar=mcnemar(mended, caused),
        coverage=rate_of(wilson(noticed, len(seen))) if seen else None,
    )


def shares(records: Iterable[TrialRecord]) -> dict[int, float]:
    """Share of answers that each trial made wrong in silence; none where the fault reached no answer that counts."""
    return {one.trial: one.sdc_share or 0.0 for one in records}
