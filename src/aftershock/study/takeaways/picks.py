"""Which faults and answers the takeaways speak of."""

from collections.abc import Callable, Iterable

import numpy as np

from aftershock.study.takeaways.cells import Cell, Labels, Mask, is_letter
from aftershock.study.takeaways.contrasts import Contrast, Side, difference

LAST_BLOCKS = 4
"""Blocks at the end of a model that are its last."""


def every(cell: Cell) -> Mask:
    """All single faults."""
    return np.array([fault is not None for fault in cell.faults], dtype=np.bool_)


def before_decode(cell: Cell) -> Mask:
    """Memory and computation faults that are there before the first answer token is read again."""
    return outside_cache(cell) & np.isin(cell.begins, ("prefill", "first_token"))


def in_decode(cell: Cell) -> Mask:
    """Memory and computation faults that begin in decode."""
    return outside_cache(cell) & np.isin(cell.begins, ("decode",))


def of_kind(kind: str) -> Callable[[Cell], Mask]:
    """Faults of a kind: memory, computation or cache."""
    return lambda cell: np.asarray(cell.kind == kind)


def outside_cache(cell: Cell) -> Mask:
    """Memory and computation faults: all but those of the cache."""
    return np.isin(cell.kind, ("memory", "computation"))


def beginning(kind: str, stage: str) -> Callable[[Cell], Mask]:
    """Faults of a kind that begin in a stage."""
    return lambda cell: (cell.kind == kind) & (cell.begins == stage)


def in_components(*components: str) -> Callable[[Cell], Mask]:
    """Memory and computation faults in some components."""
    return lambda cell: outside_cache(cell) & np.isin(cell.component, components)


def in_last(cell: Cell) -> Mask:
    """Memory and computation faults in the last blocks."""
    return outside_cache(cell) & (cell.layer >= cell.study.environment.layers - LAST_BLOCKS)


def before_last(cell: Cell) -> Mask:
    """Memory and computation faults in the blocks before the last ones."""
    return outside_cache(cell) & (cell.layer >= 0) & ~in_last(cell)


def last_blocks(cell: Cell) -> Contrast | str:
    """The last blocks against those before, in a model that has more of these."""
    if cell.study.environment.layers < 2 * LAST_BLOCKS:
        return f"its model has fewer than {2 * LAST_BLOCKS} blocks"
    sides = Side("faults in the last four blocks", in_last), Side("faults in the blocks before", before_last)
    return difference(*sides, strata=kinds)(cell)


def kinds(cell: Cell) -> Labels:
    """The kind of each fault."""
    return cell.kind


def beginnings(cell: Cell) -> Labels:
    """The stage in which each fault begins."""
    return cell.begins


def reached_in_decode(cell: Cell) -> Iterable[str]:
    """Answers long enough for some fault in decode to have reached them."""
    struck = zip(cell.trials, in_decode(cell).tolist(), strict=True)
    reached = {item.item for trial, inside in struck if inside for item in trial.items if item.eligible}
    return reached & cell.golden.keys()


def generated(cell: Cell) -> Iterable[str]:
    """Answers that the model writes, letters of options apart."""
    return (item for item, one in cell.golden.items() if one.kind == "generation" and not is_letter(one))


def chosen(cell: Cell) -> Iterable[str]:
    """Answers that are an option's letter; in a study without them, those that are the likeliest option."""
    letters = [item for item, one in cell.golden.items() if is_letter(one)]
    return letters or [item for item, one in cell.golden.items() if one.kind == "choice"]
