"""What a fault in packed words makes of the weights that come from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults.corruption import Flip, Replace, StuckAt
from aftershock.faults.fault import Fault
from aftershock.faults.places import stored_site
from aftershock.faults.resolve import check
from aftershock.faults.sites import StoredWordSite, WeightSite
from aftershock.models import LoadedModel, StoredTensor
from aftershock.numerics import words, worth


@dataclass(frozen=True)
class Element:
    """A fault in a weight, and the number of the fault of the set that it comes from."""

    of: int
    fault: Fault


@dataclass(frozen=True)
class StoredChange:
    """A stored word before and after a fault: as unsigned integers, and what they are worth (themselves, or the
    floating-point numbers that they are)."""

    fault: int
    old: int
    new: int
    old_value: float
    new_value: float


def element_faults(model: LoadedModel, faults: Sequence[Fault]) -> tuple[Element, ...]:
    """The set with every fault in a stored word in terms of the weights that it changes; the others as they are.

    A fault may change one weight (a quant), those of a block (a scale) or of a row. Where it changes none, since the
    change is lost as the value is rounded to the model's dtype, it is a fault that leaves the row's first weight as it
    is, so that it still has its moment. Faults in one row act together.

    Raises InputError for a word that the model does not have, where two of a row have different triggers, and where a
    weight that a stored word changes has a fault of its own; ContractError where the weights in memory are not what the
    words stand for.
    """
    found = [
        Element(number, fault) for number, fault in enumerate(faults) if not isinstance(fault.site, StoredWordSite)
    ]
    rows: dict[tuple[str, int], list[int]] = {}
    for number, fault in enumerate(faults):
        if isinstance(fault.site, StoredWordSite):
            check(fault, model.components, model.format)
            rows.setdefault((fault.site.parameter, fault.site.row), []).append(number)
    for numbers in rows.values():
        if len({faults[number].trigger for number in numbers}) > 1:
            raise InputError(f"fault '{faults[numbers[1]]}' shares a stored row with another: give them one trigger")
        found += _elements_of_row(model, numbers, [faults[number] for number in numbers])
    _check_apart(faults, found)
    return tuple(sorted(found, key=lambda one: one.of))


def _check_apart(faults: Sequence[Fault], found: Sequence[Element]) -> None:
    own = {fault.site: fault for fault in faults if isinstance(fault.site, WeightSite)}
    for element in found:
        named = faults[element.of]
        if isinstance(named.site, StoredWordSite) and element.fault.site in own:
            raise InputError(
                f"fault '{named}' and fault '{own[element.fault.site]}' strike the same weight, one of them in the "
                "words that it comes from: put them in trials of their own"
            )


def armed(model: LoadedModel, faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """The faults alone of `element_faults`."""
    return tuple(one.fault for one in element_faults(model, faults))


def stored_changes(model: LoadedModel, faults: Sequence[Fault]) -> tuple[StoredChange, ...]:
    """The stored words that faults of a set change."""
    changes = []
    for number, fault in enumerate(faults):
        if isinstance(fault.site, StoredWordSite):
            old = _tensor(model, fault).row(fault.site.row).word(fault.site.field, fault.site.number)
            new = _struck(old, fault)
            kind = stored_site(fault, model.components).number
            changes.append(StoredChange(number, old, new, worth(kind, old), worth(kind, new)))
    return tuple(changes)


def _tensor(model: LoadedModel, fault: Fault) -> StoredTensor:
    assert model.stored is not None
    return model.stored.tensor(stored_site(fault, model.components).parameter)


def _struck(word: int, fault: Fault) -> int:
    assert isinstance(fault.corruption, Flip | StuckAt)
    mask = sum(1 << bit for bit in fault.corruption.bits)
    if isinstance(fault.corruption, Flip):
        return word ^ mask
    return word | mask if fault.corruption.level else word & ~mask


def _elements_of_row(model: LoadedModel, numbers: Sequence[int], faults: Sequence[Fault]) -> Iterator[Element]:
    """The weights of one row that faults change, each under the number of the first of them that does."""
    tensor = _tensor(model, faults[0])
    site = faults[0].site
    assert isinstance(site, StoredWordSite)
    row = tensor.row(site.row)
    values = _as_stored(row.values(), model.dtype)
    index = [tensor.element(site.row, column) for column in range(len(values))]
    parameter = model.module.get_parameter(site.parameter).detach()
    stored = words(parameter)[tuple(torch.tensor(index).to(parameter.device).unbind(1))].cpu()
    if not torch.equal(words(values), stored):
        raise ContractError(f"row {site.row} of {site.parameter} is not what its stored words stand for")
    for number, fault in zip(numbers, faults, strict=True):
        assert isinstance(fault.site, StoredWordSite)
        place = fault.site.field, fault.site.number
        row = row.with_word(*place, _struck(row.word(*place), fault))
        struck = _as_stored(row.values(), model.dtype)
        changed = np.flatnonzero((words(struck) != words(values)).numpy()).tolist()
        if not changed:
            level: Literal[0, 1] = 1 if int(stored[0]) & 1 else 0
            unmoved = StuckAt((0,), level)
            yield Element(number, replace(fault, site=WeightSite(site.parameter, index[0]), corruption=unmoved))
        for column in changed:
            weight = WeightSite(site.parameter, index[column])
            yield Element(number, replace(fault, site=weight, corruption=Replace(float(struck[column].double()))))
        values = struck


def _as_stored(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Values rounded to the model's dtype, where a kernel dequantises them."""
    return torch.from_numpy(np.array(values)).to(dtype)
