"""From a study's records to a set of protections within budgets, and what it does to faults it was not chosen on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aftershock.errors import InputError
from aftershock.protect.configs import Protection
from aftershock.protect.planner.candidates import Candidate, candidates
from aftershock.protect.planner.choice import Choice, Offers, best_choice, pareto
from aftershock.protect.planner.costs import Cost, measured_cost, measured_costs
from aftershock.protect.planner.measured import golden_alarms
from aftershock.protect.planner.record import CurvePoint, Offered, ProtectionPlan, Spent, rate_of
from aftershock.protect.planner.tried import Flags, caused, due_share, fresh_faults, recorded, removal
from aftershock.replay import Batch
from aftershock.study import Plan, StoredStudy, TrialRecord, make_plan

FRESH_TRIALS = 200
"""Fresh faults where their number is not given: enough for an interval of some points."""

TIMED_BATCHES = 1
"""Batches of the study that costs are measured on."""

Say = Callable[[str], None]
"""Told, in a few words, what is being done now."""


@dataclass(frozen=True)
class Planned:
    """The protections chosen, ready for `protect`, and what is known of them."""

    protections: tuple[Protection, ...]
    record: ProtectionPlan


def plan_protections(
    model: str,
    study: StoredStudy,
    budget: float,
    memory_budget: float,
    trials: int = FRESH_TRIALS,
    say: Say = lambda _: None,
) -> Planned:
    """Choose the protections that remove most of the SDC that a study recorded, apply them, and try fresh faults.

    `budget`: largest share of the time of an answer that may be added; `memory_budget`: largest share of the bytes of
    the parameters. What each candidate removes is measured: each fault that did harm is run again under each one that
    might help. Costs of candidates are measured one by one and added up; that of the chosen set is measured as well.

    Raises InputError for a study of another model or not drawn uniformly, for one in which no fault did harm, where
    nothing that helps fits into the budgets, and for fewer than 2 fresh trials.
    """
    harmful = _checked(study, trials)
    settings = study.settings.model_copy(update={"model": study.settings.model.model_copy(update={"spec": model})})
    plan = make_plan(settings, say)
    if plan.environment.model_hash != study.environment.model_hash:
        raise InputError(
            f"{model} is not the model of the study in {study.folder} ({study.environment.model}): its words differ; "
            "give that model, or run a study of this one"
        )
    size = sum(one.nbytes for one in plan.model.module.parameters())
    memory = int(memory_budget * size)
    offered = candidates(plan, study, memory)
    removes = removal(plan, harmful, offered, say)
    useful = [number for number in range(len(offered)) if removes[:, number].any()]
    showing = [one for one in study.trials if due_share(one)]
    causes = caused(plan, showing, [offered[number] for number in useful], say)
    batches = timed_batches(plan)
    say(f"timing {len(useful)} protections")
    costs = dict(
        zip(useful, measured_costs(plan.model, [(offered[one].protection,) for one in useful], batches), strict=True)
    )
    offers = Offers(
        removes[:, useful],
        np.array([one.sdc_share for one in harmful], dtype=np.float64),
        causes,
        np.array([due_share(one) for one in showing]),
        np.array([max(costs[number].latency.estimate, 0.0) for number in useful]),
        np.array([float(costs[number].nbytes) for number in useful]),
    )
    names = [offered[number].name for number in useful]
    eligible = sum(one.sdc_share is not None for one in study.trials)
    choice = best_choice(offers, budget, memory)
    if not choice.chosen:
        raise InputError(_nothing_fits(offers, names, budget, memory_budget))
    numbers = [useful[number] for number in choice.chosen]
    chosen = [offered[number] for number in numbers]
    more = zip(showing, causes[:, list(choice.chosen)], strict=True)
    after = {one.trial: (one.sdc_share or 0.0) + due_share(one) for one, adds in more if adds.any()}
    after |= {one.trial: 0.0 for one, away in zip(harmful, removes[:, numbers], strict=True) if away.any()}
    protections = tuple(one.protection for one in chosen)
    fresh = fresh_faults(plan, protections, trials, say)
    say("measuring the chosen set")
    alarms, checked = golden_alarms(plan, protections)
    record = ProtectionPlan(
        model=study.environment.model,
        study=study.plan_digest,
        device=study.environment.device,
        budget=budget,
        memory_budget=memory_budget,
        model_bytes=size,
        trials=len(study.trials),
        harmful=len(harmful),
        offered=_offered(offered, removes, dict(zip(useful, causes.T, strict=True)), costs, chosen),
        curve=tuple(
            CurvePoint(
                names=tuple(names[number] for number in one.chosen),
                sdc=(offers.weights.sum() - one.removed) / eligible,
                latency=one.latency,
                nbytes=int(one.memory),
            )
            for one in pareto(offers, memory)
        ),
        chosen=tuple(one.name for one in chosen),
        recorded=recorded(study.trials, after),
        fresh=fresh,
        cost=_spent(choice, measured_cost(plan.model, protections, batches)),
        false_alarms=alarms,
        checked=checked,
    )
    return Planned(protections, record)


def timed_batches(plan: Plan) -> list[Batch]:
    """Some batches of the study, evenly taken."""
    step = max(1, len(plan.batches) // TIMED_BATCHES)
    return list(plan.batches[::step][:TIMED_BATCHES])


def _checked(study: StoredStudy, trials: int) -> list[TrialRecord]:
    """The trials that did harm."""
    settings = study.settings
    if settings.fault_list or settings.search.values or settings.sweep or settings.run.plan != "uniform":
        raise InputError(
            f"the study in {study.folder} doesn't draw its faults uniformly from one selection, so there is no fresh "
            'sample of them: run one with plan = "uniform", without a fault list, search or sweep'
        )
    if trials < 2:
        raise InputError(f"{trials} fresh trials tell nothing: give 2 or more")
    harmful = [one for one in study.trials if one.sdc_share]
    if not harmful:
        raise InputError(
            f"none of the {len(study.trials)} faults in {study.folder} caused silent data corruption: there is nothing "
            "to remove; run more trials, or choose bits that do harm"
        )
    return harmful


def _nothing_fits(offers: Offers, names: Sequence[str], budget: float, memory_budget: float) -> str:
    if not names:
        return "no protection that is known here removes any of the recorded harm: see what the study's report tells"
    cheapest = int(offers.latency.argmin())
    return (
        f"nothing that helps fits into {100 * budget:g} % of latency and {100 * memory_budget:g} % of memory; the "
        f"fastest that does, {names[cheapest]}, adds {100 * offers.latency[cheapest]:.2f} % of latency and "
        f"{offers.memory[cheapest] / 1e6:.2f} MB: raise --budget or --memory-budget"
    )


def _offered(
    offered: Sequence[Candidate],
    removes: Flags,
    causes: Mapping[int, Flags],
    costs: Mapping[int, Cost],
    chosen: Sequence[Candidate],
) -> tuple[Offered, ...]:
    return tuple(
        Offered(
            name=one.name,
            removes=int(removes[:, number].sum()),
            causes=int(causes[number].sum()) if number in causes else 0,
            latency=rate_of(costs[number].latency) if number in costs else None,
            nbytes=costs[number].nbytes if number in costs else None,
            chosen=one in chosen,
        )
        for number, one in enumerate(offered)
    )


def _spent(choice: Choice, cost: Cost) -> Spent:
    return Spent(
        predicted=choice.latency,
        latency=rate_of(cost.latency),
        prefill=rate_of(cost.prefill),
        decode=rate_of(cost.decode),
        predicted_bytes=int(choice.memory),
        nbytes=cost.nbytes,
    )
