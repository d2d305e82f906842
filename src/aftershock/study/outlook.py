"""What a plan can tell, before it is run."""

import time

from aftershock.faults import ScatteredWeights, splits
from aftershock.models import decode
from aftershock.replay import ReferenceExecutor
from aftershock.stats import sample_size, sample_size_relative, wilson
from aftershock.study.advice import Advice, trial_seconds
from aftershock.study.audit import audit_count
from aftershock.study.plan import Plan
from aftershock.study.probes import expected_trials
from aftershock.study.records import Record

PRECISIONS = (0.05, 0.03, 0.01)
RARE_RATE, RELATIVE_ERROR = 0.01, 0.25


class Outlook(Record):
    """A plan and its size. `trials` is about right for a search for boundary bits, else exact.

    `population` counts the values (weights) and channels (activations) that faults are drawn from; zero for a list.
    `sizes` gives the faults needed for an absolute error at 95 % (Leveugle et al., DATE 2009, p = 0.5),
    `size_for_rare` those for a relative error of 25 % at a rate of 1 %. `half_width` is the widest half interval
    that this many trials leave, `upper_bound_if_none` the upper bound if no fault does harm. `pace` tells which short
    cut of the executor the faults can't have (docs/replay.md), empty where they have all; its price is in `seconds`,
    which is None where nothing was timed. `rounds` tells what a study in rounds will do and when it stops;
    empty for one without.
    """

    plan_digest: str
    trials: int
    items: int
    items_per_fault: int
    population: dict[str, int]
    example: str
    sizes: dict[str, int]
    size_for_rare: int
    half_width: float
    upper_bound_if_none: float
    seconds: float | None
    rounds: str
    pace: str = ""
    advice: Advice | None = None

    def text(self) -> str:
        """The outlook for a person."""
        population = ", ".join(f"{count:,} {kind}s" for kind, count in self.population.items() if count)
        sizes = ", ".join(f"±{precision} {count:,}" for precision, count in self.sizes.items())
        lines = [
            f"plan       {self.plan_digest[:12]}: {self.trials:,} trials, each on {self.items_per_fault} of "
            f"{self.items} items",
            f"faults     {f'drawn from {population}' if population else 'your own list'}; the first: {self.example}",
            f"sizing     faults needed at 95 % for {sizes}; to know a rate of 1 % to a quarter of itself "
            f"{self.size_for_rare:,}",
            f"this many  a rate to ±{100 * self.half_width:.1f} points at worst; no harm at all would mean a rate "
            f"below {100 * self.upper_bound_if_none:.2f} %",
        ]
        if self.rounds:
            lines.insert(1, f"rounds     {self.rounds}")
        if self.pace:
            lines.append(f"pace       {self.pace}")
        if self.advice is not None:
            lines.append(self.advice.text())
        if self.seconds is not None:
            lines.append(f"time       about {self.seconds / 60:.1f} minutes on this machine")
        return "\n".join(lines)


def outlook(plan: Plan, *, seconds: float | None = None, advice: Advice | None = None) -> Outlook:
    """What the plan can tell; `seconds` where somebody estimated its time (`estimate_seconds`), `advice` on the items
    per fault where somebody has a pilot (`advise`)."""
    count = expected_trials(plan)
    population = {
        "weight": sum(site.numel for site in plan.population.parameters),
        "activation channel": sum(site.numel for site in plan.population.outputs),
        "accumulator channel": sum(site.numel for site in plan.population.accumulators),
        "cached word": sum(site.numel for site in plan.population.cached),
        "head value": sum(site.numel for site in plan.population.heads),
        "stored bit": sum(site.numel for site in plan.population.stored),
    }
    # A list tells nothing of the population that it comes from: sized as for a very large one.
    stored = population["stored bit"]
    bits = stored + (sum(population.values()) - stored) * plan.model.format.bits or 2**62
    half = wilson(count // 2, count)
    none = wilson(0, count)
    return Outlook(
        plan_digest=plan.digest,
        trials=count,
        items=len(plan.task.items),
        items_per_fault=sum(len(batch.items) for batch in plan.batches_of(0)),
        population=population,
        example=" & ".join(map(str, plan.faults_of(0)[:2])) or "none",
        sizes={f"{100 * error:g} points": sample_size(bits, error) for error in PRECISIONS},
        size_for_rare=sample_size_relative(RARE_RATE, RELATIVE_ERROR),
        half_width=(half.high - half.low) / 2,
        upper_bound_if_none=none.high,
        seconds=seconds,
        rounds=_rounds(plan),
        pace=_pace(plan),
        advice=advice,
    )


def _pace(plan: Plan) -> str:
    """What the faults of the first trials can't have, of what makes others fast."""
    if not any(batch.generates for batch in plan.used_batches):
        return ""
    # Of a stratified plan the trials of the first round alone are known.
    known = plan.settings.round_ends[0] if plan.strata else plan.trials
    faults = [fault for trial in range(min(known, 12)) for fault in plan.faults_of(trial)]
    if any(fault.spreads and (fault.trigger.end or decode(2)) > decode(1) for fault in faults):
        return "answers that leave golden's are decoded token by token from the first, since faults in outputs last"
    if any(isinstance(fault.site, ScatteredWeights) for fault in faults):
        return (
            "answers that leave golden's are written on trial by trial, since faults are scattered over whole tensors"
        )
    return ""


def _rounds(plan: Plan) -> str:
    run, ends = plan.settings.run, plan.settings.round_ends
    if not run.in_rounds:
        return ""
    shown = ", ".join(f"{end:,}" for end in ends[:4]) + (f", ... {ends[-1]:,}" if len(ends) > 4 else "")
    spread = (
        f"; {len(plan.strata):,} strata by {' x '.join(run.strata)}, after the first round more trials where more is "
        "to be learned"
        if plan.strata
        else ""
    )
    stop = "" if run.rule is None else f"; stops at the first look at which '{run.rule}' is reached"
    return f"looked at after {shown} trials{spread}{stop}"


def estimate_seconds(plan: Plan) -> float:
    """Time of the whole study, with the largest number of trials: its first trials are timed, and one golden run of one
    batch of each kind (the second of two, so that what only the first run pays is left out), which is what an audited
    trial costs."""
    batches = {batch.items[0].kind: batch for batch in plan.used_batches}
    seconds = {}
    for kind, batch in batches.items():
        for _ in range(2):
            begin = time.perf_counter()
            ReferenceExecutor(plan.model).golden(batch)
            seconds[kind] = (time.perf_counter() - begin) / len(batch.items)
    per_item = {item.id: seconds[batch.items[0].kind] for batch in plan.used_batches for item in batch.items}
    sweep = sum(per_item.values())
    fixed = sweep * (2 + plan.settings.run.noise)
    # Of a stratified plan the trials of the first round alone are known; the rest will cost as much each.
    known = plan.settings.round_ends[0] if plan.strata else plan.trials
    cuts = len({splits(plan.faults_of(trial)) for trial in range(min(known, 100))})
    count = expected_trials(plan)
    audits = audit_count(count, plan.settings.run.audit)
    items = sum(len(batch.items) for trial in range(known) for batch in plan.batches_of(trial)) / known
    audited = audits * items * sweep / len(per_item)
    return fixed + sweep * (cuts - 1) + audited + count * trial_seconds(plan, plan.batches_of)
