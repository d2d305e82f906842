"""Which components are sensitive: those whose outputs go into the residual stream as they are, says ReaLM.

"ReaLM: Reliable and Efficient Large Language Model Inference with Statistical Algorithm-Based Fault Tolerance" (DAC
2025, arXiv 2503.24053) finds that errors in the outputs of `o` and `fc2` (OPT) or `down` (LLaMA), which reach a
normalisation through the residual stream, cost more than errors in any other product of the block.
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np

from aftershock.faults import sweep_name
from aftershock.stats import Estimate, cluster_interval, p_above, p_below, pooled, rate_difference
from aftershock.study.kept import kept
from aftershock.study.records import Record
from aftershock.study.store import StoredStudy
from aftershock.study.swept import Combination, swept_trials

SENSITIVE = frozenset({"o", "down", "fc2"})
"""Components of a decoder layer whose outputs are added to the residual stream."""

LEVEL = 0.05

Verdict = Literal["holds", "does not hold", "not enough evidence"]


class Sensitivity(Record):
    """Whether every sensitive component of a sweep loses more than every other one, at the same values of the other
    keys.

    `gap`, with its 95 % interval: the smallest difference of any two, `least_sensitive` less `least_resilient`, in
    shares of golden's right answers that are lost (SDC or DUE). The claim is that all differences are positive, so
    `p_value` is the largest of theirs (intersection-union test, Berger, Technometrics 1982). It does not hold where one
    is shown to be negative, after Bonferroni.
    """

    sensitive: tuple[str, ...]
    resilient: tuple[str, ...]
    least_sensitive: str
    least_resilient: str
    gap: tuple[float, float, float]
    p_value: float
    verdict: Verdict

    def text(self) -> str:
        """`sensitive = o down: holds; down loses 31.20 points more than v (24.10 to 38.30), p = 0.0001`."""
        estimate, low, high = (100 * bound for bound in self.gap)
        return (
            f"sensitive = {' '.join(self.sensitive)}: {self.verdict}; {self.least_sensitive} loses {estimate:.2f} "
            f"points more than {self.least_resilient} ({low:.2f} to {high:.2f}), p = {self.p_value:.2g}"
        )


def sensitivity(study: StoredStudy) -> Sensitivity | None:
    """The test of a study that sweeps over single components, sensitive ones and others; None of any other study."""
    swept = [one for one in swept_trials(study) if len(one.selection.components) == 1]
    losses = {
        name: _losses([one for one in swept if one.selection.components == (name,)])
        for name in dict.fromkeys(one.selection.components[0] for one in swept)
    }
    sensitive, resilient = ([name for name in losses if (name in SENSITIVE) == inside] for inside in (True, False))
    if not sensitive or not resilient:
        return None
    gaps = {(strong, weak): _gap(losses[strong], losses[weak]) for strong, weak in product(sensitive, resilient)}
    known = {pair: gap for pair, gap in gaps.items() if gap is not None}
    if len(known) < len(gaps):
        return None
    (strong, weak), smallest = min(known.items(), key=lambda one: one[1].estimate)
    p_value = max(p_above(gap) for gap in known.values())
    refuted = min(p_below(gap) for gap in known.values()) * len(known)
    return Sensitivity(
        sensitive=tuple(sensitive),
        resilient=tuple(resilient),
        least_sensitive=strong,
        least_resilient=weak,
        gap=(smallest.estimate, smallest.low, smallest.high),
        p_value=p_value,
        verdict="holds" if p_value < LEVEL else "does not hold" if refuted < LEVEL else "not enough evidence",
    )


def _losses(cells: Sequence[Combination]) -> dict[str, Estimate]:
    """The share of golden's right answers that faults lose, mean over faults, by the values of the other keys."""
    found = {}
    for cell in cells:
        lost = 1 - kept(cell.trials).faulty
        if not np.isnan(lost).all():
            others = sweep_name({key: value for key, value in cell.values.items() if key != "components"})
            found[others] = cluster_interval(lost)
    return found


def _gap(strong: dict[str, Estimate], weak: dict[str, Estimate]) -> Estimate | None:
    """How much more one component loses than another, mean over what both were swept at; None where that is nothing."""
    shared = [others for others in strong if others in weak]
    if not shared:
        return None
    apart = [rate_difference(weak[others], strong[others]).difference for others in shared]
    return pooled(apart, [1 / len(apart)] * len(apart))
