"""What a report says of a search for boundary bits."""

from collections.abc import Sequence

from aftershock.report.table import Table
from aftershock.report.wording import rate
from aftershock.study import Rate, Searched, SearchedValue, Trust

VALUES = 40
"""Values that are listed one by one."""


def search_tables(found: Searched | None) -> tuple[Table, ...]:
    """Critical bits, how far the search can be trusted, and the values; none of a study without a search."""
    if found is None:
        return ()
    rows = [("all", _written(found.critical)), *((one.label, _written(one)) for one in found.components)]
    tables = [
        Table(
            "Critical bits",
            "The share of a value's bits whose flip does harm, if harm grows with the change; mean over values. "
            f"{len(found.values):,} values took {found.probes:,} probes; every bit would have taken {found.flips:,}. A "
            f"verifying probe came out on the wrong side for {_written(found.contradicted)} of the values.",
            ("component", "critical bits"),
            tuple(rows),
        )
    ]
    if found.trust is not None:
        tables.append(_trust(found.trust))
    if found.values:
        tables.append(_boundaries(found.values))
    return tuple(tables)


def _trust(found: Trust) -> Table:
    return Table(
        "How far the search can be trusted",
        f"Of {found.values:,} values every bit was tried. Recall: the share of the harmful bits that the search "
        "implies; precision: the share of the implied ones that are harmful; not monotone: values whose harm did not "
        "grow with the change.",
        ("recall", "precision", "not monotone"),
        ((_written(found.recall), _written(found.precision), _written(found.not_monotone)),),
    )


def _boundaries(values: Sequence[SearchedValue]) -> Table:
    return Table(
        "Boundary bits",
        f"The first {VALUES} values at most: the bit of the smallest harmful change in each direction, and the bits "
        "implied.",
        ("value", "component", *(side.direction for side in values[0].sides), "implied"),
        tuple(map(_row, values[:VALUES])),
    )


def _row(found: SearchedValue) -> tuple[str, ...]:
    borders = (("none" if side.boundary is None else f"{side.boundary}") for side in found.sides)
    return (found.site, found.component, *borders, " ".join(map(str, sorted(found.implied))))


def _written(share: Rate) -> str:
    return rate(share.estimate, share.low, share.high)
