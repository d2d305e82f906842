"""What is known of a published takeaway."""

from typing import Literal

from aftershock.study.records import Record

Label = Literal["confirmed", "reconstructed"]
"""Whether the content is known from a summary of the paper, or only guessed from the order of its findings."""

TakeawayVerdict = Literal["holds", "does not hold", "not enough evidence"]


class Effect(Record):
    """The effect that a takeaway speaks of, with its 95 % interval, in `unit`."""

    estimate: float
    low: float
    high: float
    unit: str


class LeftOut(Record):
    """A study (model, task, data type) that says nothing about a takeaway, and why."""

    cell: str
    why: str


class Takeaway(Record):
    """One of LLMFI's seventeen takeaways, held against studies.

    `claim` is in our words. `label` says how its content is known. `test` is what was measured, `criterion` where the
    takeaway holds and where it is refuted. `p_value` is the chance of evidence so strong for
    the claim if it were false (against it if it were true, where the verdict is `does not hold`), `p_holm` the same
    adjusted for the takeaways tested together; None, like `effect`, where nothing could be tested. `n` counts the
    faults of each side. `why` says what is missing where there is not enough evidence.
    """

    number: int
    claim: str
    label: Label
    test: str
    criterion: str
    verdict: TakeawayVerdict
    effect: Effect | None
    p_value: float | None
    p_holm: float | None
    n: dict[str, int]
    cells: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    why: str | None

    @property
    def tested(self) -> bool:
        """Whether the studies held the faults that the test needs."""
        return self.p_value is not None

    def text(self) -> str:
        """One line for a person."""
        said = f"{self.number:2} {self.verdict}: {self.claim}"
        if self.effect is None or self.p_holm is None:
            return f"{said} ({self.why})"
        one = self.effect
        return f"{said} ({one.estimate:+.2f} {one.unit}, {one.low:+.2f} to {one.high:+.2f}, p = {self.p_holm:.3g})"
