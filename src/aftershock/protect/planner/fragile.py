"""Which parameters to keep safe first: those whose faults did most harm for each byte of them, by a study's records.

Every bit of a model's memory is as likely to be struck, so a parameter is struck in proportion to its bytes, and what
a copy saves for each byte that it costs is the harm of one fault in that parameter: its size cancels. Parameters are
taken in the order of that harm as long as they fit (a knapsack filled by density). A study strikes most parameters a
few times only: the harm of one is drawn towards that of its component, which weighs as much as `PRIOR` faults of its
own, and parameters of a component that no fault struck are left out.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.protect.configs import Backup, Ecc
from aftershock.study import TrialRecord

PRIOR = 4.0
"""Faults of its own that a parameter needs to count as much as its component does."""

ECC_BITS = 8
"""Bits of memory that each check bit of SEC-DED stands for: 8 check bits of 64."""


@dataclass(frozen=True)
class Fragility:
    """A parameter, the harm of a fault in it (the mean share of items that are then silently wrong, drawn towards its
    component's), its bytes, and the number of faults that struck it."""

    parameter: str
    harm: float
    nbytes: int
    faults: int


def fragile_parameters(model: LoadedModel, records: Iterable[TrialRecord]) -> tuple[Fragility, ...]:
    """The parameters of a model whose components were struck, most harm for each byte first; a parameter that several
    components share under the first one.

    `records` are those of a study of weight faults on this model, one fault a trial; others are left out. Raises
    InputError where none is left.
    """
    components = {site.name: site.component for site in reversed(model.components.parameters)}
    by_parameter, by_component = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for record in records:
        share = record.sdc_share
        if record.site != "weight" or len(record.strikes) != 1 or share is None:
            continue
        name = record.strikes[0].tensor
        if name in components:
            by_parameter[name].append(share)
            by_component[components[name]].append(share)
    if not by_parameter:
        raise InputError("the records hold no fault in a single weight of this model: study sites = ['weight'] first")
    found = []
    for name, component in components.items():
        if component in by_component:
            of_all, own = by_component[component], by_parameter[name]
            harm = (sum(own) + PRIOR * sum(of_all) / len(of_all)) / (len(own) + PRIOR)
            found.append(Fragility(name, harm, model.module.get_parameter(name).nbytes, len(own)))
    return tuple(sorted(found, key=lambda one: (-one.harm, one.nbytes, one.parameter)))


def most_fragile(fragilities: Sequence[Fragility], budget: int, bits_per_check: int = 1) -> tuple[str, ...]:
    """Names of the parameters to keep within `budget` bytes, in their order, any that does harm and still fits.
    `bits_per_check`: 1 for copies, 8 (`ECC_BITS`) for check words. Raises InputError where nothing fits."""
    chosen, left = [], budget * bits_per_check
    for one in fragilities:
        if one.harm > 0 and one.nbytes <= left:
            chosen.append(one.parameter)
            left -= one.nbytes
    if not chosen:
        raise InputError(f"{budget} bytes hold none of the parameters whose faults did harm: give more")
    return tuple(chosen)


def fragile_backup(model: LoadedModel, records: Iterable[TrialRecord], budget: int) -> Backup:
    """Copies of the most fragile parameters within `budget` bytes. Raises InputError as the two above."""
    return Backup(most_fragile(fragile_parameters(model, records), budget))


def fragile_ecc(model: LoadedModel, records: Iterable[TrialRecord], budget: int) -> Ecc:
    """Check words of the most fragile parameters within `budget` bytes: eight times as many as copies could cover."""
    return Ecc(most_fragile(fragile_parameters(model, records), budget, ECC_BITS))
