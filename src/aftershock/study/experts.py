"""How often experts are chosen on a study's items, where its faults may strike their weights."""

from collections.abc import Callable, Sequence

from aftershock.faults import Population, Selection, by_expert
from aftershock.models import LoadedModel
from aftershock.replay import Batch, ExpertUse, expert_use
from aftershock.study.settings import StudySettings


def measured_use(
    settings: StudySettings,
    model: LoadedModel,
    population: Population,
    batches: Sequence[Batch],
    say: Callable[[str], None],
) -> ExpertUse:
    """The use of each expert in golden runs; empty where no fault of the study can strike the weights of one."""
    # A list, and a sweep, name components of their own.
    named = bool(settings.fault_list or settings.sweep)
    components = {site.component for site in population.parameters} | {site.component for site in population.stored}
    if not (named or "expert" in components):
        return {}
    if all(site.component != "router" for site in model.components.outputs):
        return {}
    say("counting how often each expert is chosen")
    return expert_use(model, batches)


def drawn_from(selection: Selection, population: Population, use: ExpertUse) -> Population:
    """The population as the selection draws from it: expert by expert where their use decides."""
    return by_expert(population, use) if selection.draw == "by_use" else population
