"""A takeaway and the test that it is put to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aftershock.study.takeaways.cells import Cell
from aftershock.study.takeaways.contrasts import Finding
from aftershock.study.takeaways.hypotheses import Greater, Hypothesis
from aftershock.study.takeaways.records import Label

NEGLIGIBLE = Greater(0.5)
"""Points below which a difference does not count: LLMFI's largest losses are 4 to 5 points."""

POINTS, RANK = "points", "Somers' D"
"""Units of effects: of 100 answers (or traced faults), and of `aftershock.stats.rank_trend`."""


@dataclass(frozen=True)
class Claim:
    """A takeaway and its test. The evidence is in shares and is shown, and tested, times `scale`, in `unit`;
    `near_chance`: it speaks of studies whose golden accuracy is near chance, which all others leave out."""

    number: int
    text: str
    label: Label
    test: str
    evidence: Callable[[Sequence[Cell]], Finding]
    hypothesis: Hypothesis = NEGLIGIBLE
    unit: str = POINTS
    scale: float = 100.0
    near_chance: bool = False

    @property
    def criterion(self) -> str:
        """Where the takeaway holds, and where it does not, in words."""
        return self.hypothesis.says(self.unit)
