"""What a diagnosis says: the ladder's rungs, the findings, and what the report draws."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["agrees", "differs", "not checked"]


class Said(BaseModel):
    """Base of what is said: frozen, NaN and infinities as text in JSON."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Finding(Said):
    """One error: the component whose computation is wrong first, the layers in which it is, and why.

    `found` and `reference` are the target's and the reference's value of `parameter`, None where the cause has none. A
    finding that is not `confirmed` is a disagreement of settings or words that no computed value bears out.
    """

    component: str
    cause: str
    evidence: str
    layers: tuple[int, ...] = ()
    parameter: str | None = None
    found: float | str | None = None
    reference: float | str | None = None
    before: float | None = None
    """Error ratio of the component as the target has it."""
    after: float | None = None
    """Error ratio once the cause is built into the replica."""
    runner_up: str | None = None
    runner_up_after: float | None = None
    confirmed: bool = True


class Rung(Said):
    """One step of the ladder: what was compared, and how it came out. `said` is one sentence."""

    name: str
    state: State
    said: str
    findings: tuple[Finding, ...] = ()


class Suspect(Said):
    """A component that deviates, with its error ratio and the tokens and channels at which it does."""

    component: str
    layers: tuple[int, ...]
    ratio: float
    where: str


class CurvePoint(Said):
    """The error ratio of one point of the decoder: `local`, on the inputs it had in the target, and `free`, of the
    target's run against the reference's, errors of earlier points included. None where it is not known."""

    point: str
    local: float | None
    free: float | None


class Picture(Said):
    """Error ratios by point and token: one row of `ratios` a point, one column a range of tokens, None where the target
    shows nothing. `columns` name the ranges, as request and tokens in it."""

    points: tuple[str, ...]
    columns: tuple[str, ...]
    ratios: tuple[tuple[float | None, ...], ...]


class Subject(Said):
    """What was compared: `target` and `reference` name model and engine."""

    target: str
    reference: str
    dtype: str
    requests: int
    tokens: int


class Diagnosis(Said):
    """The outcome. `verdict` is one sentence; `findings` are all errors found, the first one that the ladder meets
    first; `suspects` are at most five components, the most suspect first.

    Where `understood` is False the reference's own values are not what the replica computes: nothing is said of the
    target's model then.
    """

    verdict: str
    divergent: bool
    understood: bool
    subject: Subject
    findings: tuple[Finding, ...]
    suspects: tuple[Suspect, ...]
    rungs: tuple[Rung, ...]
    threshold: float
    """Error ratios up to this are rounding."""
    curve: tuple[CurvePoint, ...]
    picture: Picture | None
    alignment: str
    """How the target's values were told apart."""
    unmatched: tuple[str, ...]
    """The target's values that are no point of the decoder."""
    reproduce: str
    """The shortest of the prompts that shows the error, and where."""
    invisible: tuple[str, ...]
    """What these prompts in this arithmetic can't show."""

    @property
    def component(self) -> str | None:
        """The first wrong component."""
        return self.findings[0].component if self.findings else None

    @property
    def cause(self) -> str | None:
        """Why it is wrong."""
        return self.findings[0].cause if self.findings else None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers in which it is."""
        return self.findings[0].layers if self.findings else ()
