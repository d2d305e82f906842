"""Contrasts between faults of one study, and what several studies come to together.

Faults of different studies are never thrown together: each study gives a contrast of its own, and their mean over the
studies is taken. So a study with more harmful faults and more of one side can't turn the answer round (Simpson's
paradox).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from aftershock.stats import Estimate, paired_excess, pooled, rank_trend, rate_difference
from aftershock.study.takeaways.cells import FAILED, Cell, Ints, Labels, Mask
from aftershock.study.takeaways.records import LeftOut

FEWEST = 20
"""Faults that each side of a contrast needs, all studies together."""

RESAMPLES = 1000
"""Resamples of a paired excess; its interval decides, and its bounds lie 2.5 % in."""

Pick = Callable[[Cell], Mask]
Answers = Callable[[Cell], Iterable[str]]


@dataclass(frozen=True)
class Contrast:
    """What one study says: the contrast with its interval, how much it weighs, and the faults of each side."""

    estimate: Estimate
    weight: float
    n: dict[str, int]


Contrasted = Callable[[Cell], Contrast | str]
"""A study's contrast, or why it has none."""


@dataclass(frozen=True)
class Finding:
    """What all studies say. `looks` is the number of contrasts of which the least favourable was taken."""

    estimate: Estimate | None
    n: dict[str, int]
    cells: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    why: str | None = None
    looks: int = 1


@dataclass(frozen=True)
class Side:
    """Faults of one side, by the name that the result gives them."""

    name: str
    pick: Pick


def with_reference(cell: Cell) -> Iterable[str]:
    """Items with a reference."""
    return cell.golden


def within(contrast: Contrasted, found_in: Sequence[Cell]) -> Finding:
    """The mean of the studies' own contrasts, each weighing as its faults allow."""
    parts: dict[str, Contrast] = {}
    left_out = []
    for cell in found_in:
        part = contrast(cell)
        if isinstance(part, str):
            left_out.append(LeftOut(cell=cell.name, why=part))
        else:
            parts[cell.name] = part
    return joined(list(parts.values()), tuple(parts), tuple(left_out))


def joined(parts: Sequence[Contrast], names: tuple[str, ...], left_out: tuple[LeftOut, ...]) -> Finding:
    """The weighted mean of contrasts, if they hold faults enough."""
    if not parts:
        reasons = dict.fromkeys(one.why for one in left_out)
        return Finding(None, {}, (), left_out, "; ".join(reasons) or "no study fits")
    n = dict(sum((Counter(part.n) for part in parts), Counter[str]()))
    if why := too_few(n):
        return Finding(None, n, names, left_out, why)
    return Finding(mean_of(parts).estimate, n, names, left_out)


def too_few(n: dict[str, int]) -> str | None:
    """What lacks faults; None where there are enough."""
    lacking = [f"{count} {name}" for name, count in n.items() if count < FEWEST]
    return f"only {' and '.join(lacking)}, of {FEWEST} needed" if lacking else None


def mean_of(parts: Sequence[Contrast]) -> Contrast:
    """The weighted mean of contrasts as one."""
    weights = np.array([part.weight for part in parts])
    estimate = pooled([part.estimate for part in parts], weights / weights.sum())
    return Contrast(estimate, float(weights.sum()), dict(sum((Counter(part.n) for part in parts), Counter[str]())))


def difference(
    worse: Side,
    better: Side,
    answers: Answers | None = None,
    strata: Callable[[Cell], Labels] = lambda cell: np.full(len(cell.trials), "all"),
) -> Contrasted:
    """Share of right answers lost under the faults of one side less that under the other's, among faults alike in
    `strata`; a stratum weighs n1 n2 / (n1 + n2) (Cochran, Biometrics 1954; Mantel and Haenszel, JNCI 1959)."""

    def contrast(cell: Cell) -> Contrast | str:
        shares = cell.lost if answers is None else cell.shares(answers(cell))
        labels = strata(cell)
        sides = [side.pick(cell) & ~np.isnan(shares) for side in (worse, better)]
        parts = []
        for label in dict.fromkeys(labels[sides[0] | sides[1]].tolist()):
            more, less = (side & (labels == label) for side in sides)
            counts = int(more.sum()), int(less.sum())
            if min(counts):
                between = rate_difference(cell.rate(shares, less), cell.rate(shares, more)).difference
                weight = counts[0] * counts[1] / sum(counts)
                parts.append(Contrast(between, weight, dict(zip((worse.name, better.name), counts, strict=True))))
        if parts:
            return mean_of(parts)
        lacking = [side.name for side, mask in zip((worse, better), sides, strict=True) if not mask.any()]
        return (
            f"no {' and no '.join(lacking)}" if lacking else f"{worse.name} and {better.name} are not alike otherwise"
        )

    return contrast


def excess(
    side: Side,
    answers: Answers = with_reference,
    among: frozenset[str] | None = None,
    outcomes: frozenset[str] = FAILED,
) -> Contrasted:
    """Share of a fault's answers with one of the outcomes, of those with an outcome `among` (all, where not given),
    less that of the noise floor on the very same items."""

    def contrast(cell: Cell) -> Contrast | str:
        asked, sweeps = frozenset(answers(cell)), cell.study.noise_sweeps
        if not sweeps:
            return "its noise floor is not measured"
        picked = side.pick(cell)
        shares, floor, kept = [], [], []
        for number, trial in enumerate(cell.trials):
            own = [
                item
                for item in trial.items
                if item.eligible and item.item in asked and (among is None or item.outcome in among)
            ]
            if picked[number] and own:
                shares.append(sum(item.outcome in outcomes for item in own) / len(own))
                floor.append([sum(sweep[item.item] in outcomes for item in own) / len(own) for sweep in sweeps])
                kept.append(number)
        if not kept:
            return f"no {side.name}"
        weights = None if cell.drawn is None else cell.drawn.weights[kept]
        found = paired_excess(shares, floor, cell.study.settings.run.seed, resamples=RESAMPLES, weights=weights)
        return Contrast(found, len(kept), {side.name: len(kept)})

    return contrast


def trend(side: Side, place: Callable[[Cell], Ints]) -> Contrasted:
    """Whether failures lie further on than what survives (`aftershock.stats.rank_trend`)."""

    def contrast(cell: Cell) -> Contrast | str:
        mask = side.pick(cell) & ~np.isnan(cell.lost)
        if not mask.any():
            return f"no {side.name}"
        own, places = cell.lost[mask], place(cell)[mask]
        if np.ptp(places) == 0:
            return f"all {side.name} lie in one place"
        n = {
            f"{side.name} that cost an answer": int((own > 0).sum()),
            f"{side.name} that leave one as it was": int((own < 1).sum()),
        }
        if not min(n.values()):
            return f"no {next(name for name, count in n.items() if not count)}"
        weights = None if cell.drawn is None else cell.drawn.weights[mask]
        return Contrast(rank_trend(places, own, weights), float(min(n.values())), n)

    return contrast


def healed(side: Side) -> Contrasted:
    """Share of the traced faults whose relative error is smaller after the last block than after the one struck, less
    one half; a fault that leaves no error behind it says nothing."""

    def contrast(cell: Cell) -> Contrast | str:
        shrank = np.full(len(cell.trials), np.nan)
        for number, trial in enumerate(cell.trials):
            error = trial.residual_error
            if error is not None and trial.layer is not None and error[trial.layer + 1] > 0:
                after = error[trial.layer + 1]
                shrank[number] = 0.5 if error[-1] == after else float(error[-1] < after)
        mask = side.pick(cell) & ~np.isnan(shrank)
        if not mask.any():
            return f"no {side.name}"
        found = cell.rate(shrank, mask)
        centred = Estimate(found.estimate - 0.5, found.low - 0.5, found.high - 0.5, found.n)
        return Contrast(centred, found.n, {side.name: found.n})

    return contrast
