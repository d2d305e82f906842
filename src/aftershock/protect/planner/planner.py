"""From a study's records to a set of protections within budgets, and what it does to faults it was not chosen on."""

from collections.abc import Callable
from dataclasses import dataclass

from aftershock.errors import InputError
from aftershock.protect.configs import Protection
from aftershock.protect.planner.choice import Choice, best_choice, pareto
from aftershock.protect.planner.costs import Cost, measured_cost
from aftershock.protect.planner.measured import golden_alarms
from aftershock.protect.planner.offering import Tried, tried_candidates
from aftershock.protect.planner.record import CurvePoint, ProtectionPlan, Spent, rate_of
from aftershock.protect.planner.tried import fresh_faults, recorded
from aftershock.study import Plan, StoredStudy, TrialRecord, make_plan

FRESH_TRIALS = 200
"""Fresh faults where their number is not given: enough for an interval of some points."""

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
    plan = _plan_of(model, study, say)
    size = sum(one.nbytes for one in plan.model.module.parameters())
    memory = int(memory_budget * size)
    tried = tried_candidates(plan, study, harmful, memory, say)
    choice = best_choice(tried.offers, budget, memory)
    if not choice.chosen:
        raise InputError(_nothing_fits(tried, budget, memory_budget))
    protections = tuple(tried.useful[place].protection for place in choice.chosen)
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
        offered=tried.listed(choice.chosen),
        curve=_curve(tried, memory, sum(one.sdc_share is not None for one in study.trials)),
        chosen=tried.names(choice.chosen),
        recorded=recorded(study.trials, tried.after(choice.chosen)),
        fresh=fresh,
        cost=_spent(choice, measured_cost(plan.model, protections, plan.batches[:1])),
        false_alarms=alarms,
        checked=checked,
    )
    return Planned(protections, record)


def _plan_of(model: str, study: StoredStudy, say: Say) -> Plan:
    """The study's plan on the model given, which must be the one that it was run on."""
    settings = study.settings.model_copy(update={"model": study.settings.model.model_copy(update={"spec": model})})
    plan = make_plan(settings, say)
    if plan.environment.model_hash != study.environment.model_hash:
        raise InputError(
            f"{model} is not the model of the study in {study.folder} ({study.environment.model}): its words differ; "
            "give that model, or run a study of this one"
        )
    return plan


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


def _nothing_fits(tried: Tried, budget: float, memory_budget: float) -> str:
    if not tried.useful:
        return "no protection that is known here removes any of the recorded harm: see what the study's report tells"
    offers = tried.offers
    cheapest = int(offers.latency.argmin())
    return (
        f"nothing that helps fits into {100 * budget:g} % of latency and {100 * memory_budget:g} % of memory; the "
        f"fastest that does, {tried.useful[cheapest].name}, adds {100 * offers.latency[cheapest]:.2f} % of latency and "
        f"{offers.memory[cheapest] / 1e6:.2f} MB: raise --budget or --memory-budget"
    )


def _curve(tried: Tried, memory: float, eligible: int) -> tuple[CurvePoint, ...]:
    """The sets worth their latency; rates are of `eligible` trials."""
    offers = tried.offers
    return tuple(
        CurvePoint(
            names=tried.names(one.chosen),
            sdc=(offers.weights.sum() - one.removed) / eligible,
            latency=one.latency,
            nbytes=int(one.memory),
        )
        for one in pareto(offers, memory)
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
