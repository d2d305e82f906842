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
RESILIENT = frozenset({"q", "k", "v", "qk", "sv", "gate", "up", "fc1"})
"""The products of a decoder layer, as ReaLM sorts them. What else may be swept (embedding, norms, router) is in
neither."""

LEVEL = 0.05

Verdict = Literal["holds", "does not hold", "not enough evidence"]


class Sensitivity(Record):
    """Whether every sensitive component of a sweep loses more than every resilient one, at the same values of the other
    keys.

    Lost are golden's right answers that end as SDC or DUE. `gap`, with its 95 % interval, is what the component
    `strong` loses more than `weak`, in shares: of all pairs the one that decides. The claim is that all gaps are
    positive, so it holds if the least certain of them is, without a correction (intersection-union test, Berger,
    Technometrics 1982), and `p_value` is that pair's. It does not hold where the gap that is most clearly negative is,
    after Bonferroni.
    """

    sensitive: tuple[str, ...]
    resilient: tuple[str, ...]
    strong: str
    weak: str
    gap: tuple[float, float, float]
    p_value: float
    verdict: Verdict

    def text(self) -> str:
        """`sensitive = o down: holds; down loses 31.20 points more than v (24.10 to 38.30), p = 0.0001`."""
        estimate, low, high = (100 * bound for bound in self.gap)
        return (
            f"sensitive = {' '.join(self.sensitive)}: {self.verdict}; {self.strong} loses {estimate:.2f} points more "
            f"than {self.weak} ({low:.2f} to {high:.2f}), p = {self.p_value:.2g}"
        )


def sensitivity(study: StoredStudy) -> Sensitivity | None:
    """The test of a study that sweeps over single components of both kinds; None of any other study."""
    swept = [one for one in swept_trials(study) if len(one.selection.components) == 1]
    losses = {
        name: _losses([one for one in swept if one.selection.components == (name,)])
        for name in dict.fromkeys(one.selection.components[0] for one in swept)
    }
    sensitive, resilient = ([name for name in losses if name in kind] for kind in (SENSITIVE, RESILIENT))
    if not sensitive or not resilient:
        return None
    gaps = {(strong, weak): _gap(losses[strong], losses[weak]) for strong, weak in product(sensitive, resilient)}
    known = {pair: gap for pair, gap in gaps.items() if gap is not None}
    if len(known) < len(gaps):
        return None
    refuting = min(known, key=lambda pair: p_below(known[pair]))
    refuted = min(1.0, p_below(known[refuting]) * len(known))
    least_certain = max(known, key=lambda pair: p_above(known[pair]))
    pair, p_value = (refuting, refuted) if refuted < LEVEL else (least_certain, p_above(known[least_certain]))
    gap = known[pair]
    return Sensitivity(
        sensitive=tuple(sensitive),
        resilient=tuple(resilient),
        strong=pair[0],
        weak=pair[1],
        gap=(gap.estimate, gap.low, gap.high),
        p_value=p_value,
        verdict="does not hold" if refuted < LEVEL else "holds" if p_value < LEVEL else "not enough evidence",
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
