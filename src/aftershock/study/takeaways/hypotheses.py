"""What a takeaway asserts of an effect, and how strongly an estimate speaks for it or against it."""

from dataclasses import dataclass
from typing import Protocol

from aftershock.stats import Estimate, p_above, p_below, p_equivalent


class Hypothesis(Protocol):
    """An assertion about an effect. Each p-value is the chance of evidence so strong if the contrary were true."""

    def says(self, unit: str) -> str:
        """The assertion, and when it is refuted, in words; the effect is in `unit`."""
        ...

    def p_for(self, found: Estimate) -> float:
        """P-value of the assertion."""
        ...

    def p_against(self, found: Estimate) -> float:
        """P-value of its refutation."""
        ...


@dataclass(frozen=True)
class Greater:
    """The effect is above 0. Refuted where it is below `least`, the smallest that counts: absent or turned round."""

    least: float

    def says(self, unit: str) -> str:
        """See `Hypothesis`."""
        return f"holds above 0, refuted below {self.least:g} {unit}"

    def p_for(self, found: Estimate) -> float:
        """Two-sided."""
        return min(1.0, 2 * p_above(found))

    def p_against(self, found: Estimate) -> float:
        """One-sided."""
        return p_below(found, self.least)


@dataclass(frozen=True)
class Different:
    """The effect is not 0, whichever its sign. Refuted where it lies within -`least` to `least`."""

    least: float

    def says(self, unit: str) -> str:
        """See `Hypothesis`."""
        return f"holds away from 0 in either direction, refuted within ±{self.least:g} {unit}"

    def p_for(self, found: Estimate) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(p_above(found), p_below(found)))

    def p_against(self, found: Estimate) -> float:
        """Two one-sided tests."""
        return p_equivalent(found, self.least)


@dataclass(frozen=True)
class Equivalent:
    """The effect lies within -`margin` to `margin`. Refuted where it lies outside."""

    margin: float

    def says(self, unit: str) -> str:
        """See `Hypothesis`."""
        return f"holds within ±{self.margin:g} {unit}, refuted outside"

    def p_for(self, found: Estimate) -> float:
        """Two one-sided tests."""
        return p_equivalent(found, self.margin)

    def p_against(self, found: Estimate) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(p_above(found, self.margin), p_below(found, -self.margin)))
