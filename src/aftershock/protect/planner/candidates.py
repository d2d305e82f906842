"""What a planner may choose from: protections of single components, by what a study's records say of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aftershock.errors import InputError
from aftershock.faults import Fault, ScatteredWeights, StoredWordSite, WeightSite
from aftershock.models import FIRST_TOKEN, LoadedModel
from aftershock.protect.configs import (
    PRODUCTS,
    Backup,
    Checksum,
    DualFirstToken,
    FiniteScreen,
    Protection,
    RangeGuard,
    Scrub,
)
from aftershock.protect.observed import observe_bounds
from aftershock.protect.planner.fragile import fragile_backup
from aftershock.protect.sites import output_sites, sites_of
from aftershock.study import Plan, StoredStudy, Trial

MARGIN = 0.5
"""Range guards are as wide as the range of golden text and so much of it more on either side."""


@dataclass(frozen=True)
class Candidate:
    """A protection to choose or not, by a name for people."""

    name: str
    protection: Protection


def candidates(plan: Plan, study: StoredStudy, memory: int) -> tuple[Candidate, ...]:
    """Protections of a study's model, each of one component or of one kind; `memory` bytes are what copies may take, of
    a component's parameters or of those in which recorded faults did most harm."""
    model = plan.model
    checked = list(dict.fromkeys(site.components for site in sites_of(model).all))
    ranges = _ranges(plan, study)
    return (
        *(Candidate(f"checksum of {', '.join(one)}", Checksum(one)) for one in checked),
        *(Candidate(f"range guard on {name}", RangeGuard(bounds)) for name, bounds in ranges.items()),
        Candidate("screen for NaN and infinities", FiniteScreen(limit="clamp")),
        *(Candidate(f"copies of {name}", Backup(names)) for name, names in _copies(model, memory)),
        *_fragile(model, study, memory),
        Candidate("scrubbing before every pass", Scrub()),
        Candidate("first token twice", DualFirstToken()),
    )


def looks(protection: Protection) -> bool:
    """Whether a protection judges outputs, so that only a run tells what it sees."""
    return isinstance(protection, Checksum | RangeGuard | FiniteScreen)


def may_act(protection: Protection, trial: Trial, component: str) -> bool:
    """Whether a protection could undo a trial's faults, which struck a `component`, as far as can be told without a
    run. A checksum tells and undoes errors of its own product: what comes from elsewhere it computes as before."""
    match protection:
        case Checksum():
            return bool(set(component.split("+")) & set(protection.components)) or component == "several"
        case Scrub():
            return any(struck_parameter(fault) is not None for fault in trial.faults)
        case Backup():
            return any(struck_parameter(fault) in protection.parameters for fault in trial.faults)
        case DualFirstToken():
            return any(fault.trigger.transient and fault.first <= FIRST_TOKEN for fault in trial.faults)
        case _:
            return True


def struck_parameter(fault: Fault) -> str | None:
    """The parameter that a fault is in; None where it is in no weight."""
    site = fault.site
    return site.parameter if isinstance(site, WeightSite | ScatteredWeights | StoredWordSite) else None


def _ranges(plan: Plan, study: StoredStudy) -> dict[str, dict[str, tuple[float, float]]]:
    """Bounds of the outputs of each component on the study's own items and golden answers."""
    model = plan.model
    texts = dict.fromkeys(one.prompt + (one.output if one.kind == "generation" else "") for one in study.golden)
    tokens = [model.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    bounds = observe_bounds(model, tokens, PRODUCTS, MARGIN)
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for module, site in output_sites(model).items():
        if module in bounds:
            found[", ".join(site.components)][module] = bounds[module]
    return found


def _copies(model: LoadedModel, memory: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Components whose parameters fit, with their names."""
    sizes = {name: one.nbytes for name, one in model.module.named_parameters(remove_duplicate=False)}
    names: dict[str, list[str]] = defaultdict(list)
    for site in model.components.parameters:
        names[site.component].append(site.name)
    for component, own in names.items():
        if sum(sizes[name] for name in own) <= memory:
            yield component, tuple(own)


def _fragile(model: LoadedModel, study: StoredStudy, memory: int) -> Sequence[Candidate]:
    """Copies of the parameters in which recorded faults did most harm for their size, as many as fit, if any."""
    try:
        backup = fragile_backup(model, study.trials, memory)
    except InputError:
        return ()
    return (Candidate("copies of the most fragile parameters", backup),)
