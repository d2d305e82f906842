"""Experts of a mixture: which one a fault lies in, and a population of them that knows how often each is chosen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from aftershock.errors import InputError
from aftershock.faults.fault import Fault
from aftershock.faults.places import Place
from aftershock.faults.selection import Population
from aftershock.faults.sites import StoredWordSite, WeightSite
from aftershock.models import ExpertSite, ParameterSite, Rows, StoredSite

_ALWAYS = 1.0
"""Use of a shared expert: every token goes through it."""


def expert_of(fault: Fault, part: Place) -> int | None:
    """The expert whose weights a fault strikes, counted in its layer; `part` is what it lies in. None where it strikes
    something else, or an expert that all tokens share."""
    parameter = part.parameter if isinstance(part, StoredSite) else part
    if not isinstance(parameter, ParameterSite) or not _stacked(parameter):
        return None
    if isinstance(fault.site, StoredWordSite):
        # Rows of one expert after another's.
        return fault.site.row // parameter.shape[1]
    # A scattered set lies in several.
    return fault.site.index[0] if isinstance(fault.site, WeightSite) else None


def by_expert(population: Population, use: Mapping[int, Sequence[float]]) -> Population:
    """The population with stacked weights of experts taken apart, each with its use in its layer."""
    return replace(population, parameters=tuple(_apart(population.parameters, use)))


def _apart(sites: Sequence[ParameterSite], use: Mapping[int, Sequence[float]]) -> Iterator[ParameterSite]:
    for site in sites:
        known = (site.name, site.component, site.layer)
        if site.component != "expert" or site.layer is None:
            yield site
        elif not _stacked(site):
            yield ExpertSite(*known, site.shape, site.stored_shape, site.dim, site.rows, _ALWAYS)
        else:
            if site.layer not in use:
                raise InputError(
                    f"layer {site.layer} does not show which expert a token chooses: use another draw than by_use"
                )
            experts, *matrix = site.shape
            for expert, share in enumerate(use[site.layer]):
                yield ExpertSite(*known, (1, *matrix), site.stored_shape, 0, Rows(expert, 1, experts), share)


def _stacked(site: ParameterSite) -> bool:
    """Whether a tensor holds the matrices of all experts of a layer, one after the other."""
    return site.component == "expert" and len(site.stored_shape) == 3
