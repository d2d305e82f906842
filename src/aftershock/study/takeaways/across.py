"""Takeaways that compare studies with each other: tasks, data types, dense models and experts.

Only studies that are alike in everything else are compared.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np

from aftershock.stats import Estimate, p_above, pooled, rate_difference
from aftershock.study.takeaways.cells import Cell, Mask
from aftershock.study.takeaways.contrasts import (
    Contrast,
    Finding,
    Side,
    difference,
    joined,
    mean_of,
    too_few,
    within,
)
from aftershock.study.takeaways.records import LeftOut

BASELINES_APART = 0.1
"""Difference of golden accuracy, freed of chance, from which on two tasks have a low and a high baseline."""

FORMATS = ("integer", "float16", "float32", "bfloat16")
"""Number formats in the order in which the takeaway lets them recover, best first."""


def masked_by_baseline(cells: Sequence[Cell]) -> Finding:
    """Accuracy lost per unit of baseline: the slope over the tasks of one model, common to all models."""
    parts: list[tuple[float, Estimate]] = []
    used, left_out = [], []
    for group in _alike(cells, _same_but_task):
        baselines = np.array([(cell.accuracy - cell.chance) / (1 - cell.chance) for cell in group])
        if np.ptp(baselines) < BASELINES_APART:
            left_out += [LeftOut(cell=cell.name, why="no task of another baseline, alike otherwise") for cell in group]
            continue
        losses = [_accuracy_loss(cell) for cell in group]
        parts += zip(baselines - baselines.mean(), losses, strict=True)
        used += [cell.name for cell in group]
    if not parts:
        return joined([], (), tuple(left_out))
    distances = np.array([distance for distance, _ in parts])
    slope = pooled([loss for _, loss in parts], distances / (distances @ distances))
    n = {
        "faults on tasks of a high baseline": sum(loss.n for distance, loss in parts if distance > 0),
        "faults on tasks of a low baseline": sum(loss.n for distance, loss in parts if distance < 0),
    }
    why = too_few(n)
    return Finding(None if why else slope, n, tuple(used), tuple(left_out), why)


def order_of_formats(cells: Sequence[Cell]) -> Finding:
    """The smallest step between neighbours in the order of formats, over all pairs of neighbours that were studied. The
    order holds only if every step does, so the one that speaks least for it decides."""
    steps: dict[tuple[str, str], list[Contrast]] = {}
    used: list[str] = []
    left_out: list[LeftOut] = []
    for group in _alike(cells, _same_but_format):
        found = [one for kind in ("memory", "computation") for one in _format_steps(group, kind)]
        for step, contrast in found:
            steps.setdefault(step, []).append(contrast)
        if found:
            used += [cell.name for cell in group]
        else:
            left_out += [
                LeftOut(cell=cell.name, why="no study of another data type, alike otherwise") for cell in group
            ]
    if not steps:
        return joined([], (), tuple(left_out))
    return _weakest([mean_of(parts) for parts in steps.values()], tuple(used), tuple(left_out))


def _format_steps(group: Sequence[Cell], kind: str) -> Iterator[tuple[tuple[str, str], Contrast]]:
    rates: dict[str, Estimate] = {}
    for name in FORMATS:
        found = [_rate(cell, (cell.kind == kind) & (cell.format == name)) for cell in group]
        known = [one for one in found if one is not None]
        if known:
            rates[name] = _mean(known)
    for better, worse in pairwise(rates):
        yield (better, worse), _between(rates[better], rates[worse], (f"{better} faults", f"{worse} faults"))


def experts(cells: Sequence[Cell]) -> Finding:
    """The weaker of two halves: memory faults cost dense models more than models with experts on the same task, and the
    router's faults cost more than the experts'."""
    mixtures = [cell for cell in cells if cell.has_experts]
    if not mixtures:
        return Finding(None, {}, (), (), "no study of a model with experts struck them or their router")
    router = within(
        difference(
            Side("faults in routers", lambda cell: cell.component == "router"),
            Side("faults in experts", lambda cell: cell.component == "expert"),
            strata=lambda cell: cell.kind,
        ),
        mixtures,
    )
    milder, used = [], dict.fromkeys(router.cells)
    for group in _alike(cells, _same_but_model):
        sides = [
            [rate for cell in group if cell.has_experts == has and (rate := _rate(cell, cell.kind == "memory"))]
            for has in (True, False)
        ]
        if all(sides):
            names = ("memory faults in models with experts", "memory faults in dense models")
            milder.append(_between(_mean(sides[0]), _mean(sides[1]), names))
            used |= dict.fromkeys(cell.name for cell in group)
    if router.estimate is None or not milder:
        why = router.why or "no dense model was studied with the same task and faults"
        return Finding(None, router.n, tuple(used), router.left_out, why)
    halves = (mean_of(milder), Contrast(router.estimate, 1.0, router.n))
    return _weakest(halves, tuple(used), router.left_out)


def _weakest(parts: Sequence[Contrast], used: tuple[str, ...], left_out: tuple[LeftOut, ...]) -> Finding:
    """The part that speaks least for the claim (intersection-union test, Berger, Technometrics 1982)."""
    n = {name: max(part.n.get(name, 0) for part in parts) for part in parts for name in part.n}
    if why := too_few(n):
        return Finding(None, n, used, left_out, why)
    weakest = max(parts, key=lambda part: p_above(part.estimate))
    return Finding(weakest.estimate, n, used, left_out, looks=len(parts))


def _between(better: Estimate, worse: Estimate, names: tuple[str, str]) -> Contrast:
    weight = better.n * worse.n / (better.n + worse.n)
    return Contrast(
        rate_difference(better, worse).difference, weight, dict(zip(names, (better.n, worse.n), strict=True))
    )


def _mean(rates: Sequence[Estimate]) -> Estimate:
    return pooled(rates, np.full(len(rates), 1 / len(rates)))


def _rate(cell: Cell, mask: Mask) -> Estimate | None:
    mask = mask & ~np.isnan(cell.lost)
    return cell.rate(cell.lost, mask) if mask.any() else None


def _accuracy_loss(cell: Cell) -> Estimate:
    """Golden's accuracy less the faulty one on the same items, mean over faults."""
    losses = []
    for trial in cell.trials:
        pairs = [(cell.golden[item.item].right, item.right) for item in trial.items if item.item in cell.golden]
        lost = sum((clean is True) - (faulty is True) for clean, faulty in pairs)
        losses.append(lost / len(pairs) if pairs else np.nan)
    # A loss lies in [-1, 1]; a share, of which the interval is known, in [0, 1].
    shares = (np.array(losses, dtype=np.float64) + 1) / 2
    found = cell.rate(shares, np.full(len(losses), True))
    return Estimate(2 * found.estimate - 1, 2 * found.low - 1, 2 * found.high - 1, found.n)


def _alike(cells: Sequence[Cell], key: Callable[[Cell], str]) -> Iterator[list[Cell]]:
    for _, group in groupby(sorted(cells, key=key), key):
        yield list(group)


def _same_but_task(cell: Cell) -> str:
    return f"{cell.study.environment.model_hash} {cell.study.environment.dtype} {_faults(cell)}"


def _same_but_format(cell: Cell) -> str:
    settings = cell.study.settings
    return f"{settings.model.spec} {settings.task} {_faults(cell, 'sites', 'fields')}"


def _same_but_model(cell: Cell) -> str:
    return f"{cell.study.settings.task} {cell.study.environment.dtype} {_faults(cell, 'components')}"


def _faults(cell: Cell, *but: str) -> str:
    """Which faults the study draws, some keys apart."""
    settings = cell.study.settings
    sweep = {key: values for key, values in settings.sweep.items() if key not in but}
    return f"{settings.faults.model_dump_json(exclude=set(but))} {sweep}"
