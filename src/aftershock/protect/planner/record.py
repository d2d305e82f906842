"""What the planner says: figures only, without the protections themselves."""

from pydantic import BaseModel, ConfigDict

from aftershock.stats import Estimate
from aftershock.study import Rate


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())


class Offered(_Record):
    """A protection that could be chosen: `removes` so many of the recorded faults that did harm, `causes` harm in
    silence by so many that showed by themselves, both by measurement, and adds a share of the time of an answer (with
    its interval) and `nbytes` of memory. Those that remove nothing are not timed (None)."""

    name: str
    removes: int
    causes: int
    latency: Rate | None
    nbytes: int | None
    chosen: bool


class CurvePoint(_Record):
    """A set worth its latency: the SDC rate that it leaves of the recorded faults, and its predicted costs."""

    names: tuple[str, ...]
    sdc: float
    latency: float
    nbytes: int


class BeforeAfter(_Record):
    """SDC rate without and with the chosen protections, on the same faults."""

    before: Rate
    after: Rate


class Fresh(BeforeAfter):
    """The same on faults that the planner never saw, drawn from the study's selection with another `seed`.

    `difference`: after minus before, paired by fault, in shares, with the p-value of the exchange test; `mended` faults
    did harm without protections alone, `caused` with them alone, `mcnemar` is the exact p-value of these two.
    `coverage`: share of the faults that did harm which some chosen protection saw; None where there was none.
    """

    trials: int
    seed: int
    difference: Rate
    p_value: float
    mended: int
    caused: int
    mcnemar: float
    coverage: Rate | None


class Spent(_Record):
    """Costs of the chosen set: predicted by adding up those of its parts, and measured of all together; shares of the
    time of an answer, of a prefill pass and of a decode pass."""

    predicted: float
    latency: Rate
    prefill: Rate
    decode: Rate
    predicted_bytes: int
    nbytes: int


class ProtectionPlan(_Record):
    """Which protections were chosen for a model within budgets, and what they do.

    `budget`: share of the time of an answer; `memory_budget`: share of the bytes of the parameters (`model_bytes`).
    `harmful` of the study's `trials` did harm. `false_alarms`: of the `checked` rows and values of golden runs so many
    were called wrong.
    """

    model: str
    study: str
    device: str
    budget: float
    memory_budget: float
    model_bytes: int
    trials: int
    harmful: int
    offered: tuple[Offered, ...]
    curve: tuple[CurvePoint, ...]
    chosen: tuple[str, ...]
    recorded: BeforeAfter
    fresh: Fresh
    cost: Spent
    false_alarms: int
    checked: int


def rate_of(found: Estimate) -> Rate:
    """An estimate as records hold it."""
    return Rate(estimate=found.estimate, low=found.low, high=found.high, n=found.n)
