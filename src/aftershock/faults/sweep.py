"""The same selection many times over, some of its keys with each of several values."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from aftershock.faults.selection import Selection, select
from aftershock.faults.strata import Cell, Stratum
from aftershock.models import ComponentMap

Sweep = Mapping[str, Sequence[Any]]
"""Keys of a selection, each with the values that it takes."""


def combinations(selection: Selection, sweep: Sweep) -> tuple[tuple[dict[str, Any], Selection], ...]:
    """Every combination of the values, the last key's changing fastest, with the selection that it makes.

    Raises pydantic's ValidationError for one that is no selection.
    """
    plain = selection.model_dump(exclude_unset=True)
    chosen = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    return tuple((values, Selection.model_validate({**plain, **values})) for values in chosen)


def swept(selection: Selection, sweep: Sweep, components: ComponentMap) -> tuple[Stratum, ...]:
    """A stratum for every combination, all of one chance. Raises InputError for one that leaves nothing to strike."""
    found = combinations(selection, sweep)
    cells = [Cell({}, own, select(own, components), (), 1 / len(found)) for _, own in found]
    return tuple(Stratum(sweep_name(values), (cell,)) for (values, _), cell in zip(found, cells, strict=True))


def sweep_name(values: Mapping[str, Any]) -> str:
    """`rate = 1e-05, components = q k`."""
    return ", ".join(f"{key} = {sweep_value(value)}" for key, value in values.items())


def sweep_value(value: Any) -> str:
    """A value as people write it: `1e-05`, `q k`."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
