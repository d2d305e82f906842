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

    def text(self) -> str:
        """The plan for a person."""
        fresh, cost = self.fresh, self.cost
        moved = fresh.difference
        by = f"{100 * moved.estimate:+.2f} points ({100 * moved.low:+.2f} to {100 * moved.high:+.2f})"
        share = f"{cost.nbytes / 1e6:,.2f} MB, {100 * cost.nbytes / self.model_bytes:.2f} % of the model"
        return "\n".join(
            [
                "chosen        " + "; ".join(self.chosen),
                f"fresh faults  SDC {fresh.before.text()} before",
                f"              SDC {fresh.after.text()} after",
                f"  difference  {by}, paired by {moved.n} faults, p = {fresh.p_value:.2g}; "
                f"{fresh.mended} mended, {fresh.caused} caused",
                f"chosen on     SDC {self.recorded.before.text()} before",
                f"              SDC {self.recorded.after.text()} after",
                f"coverage      {'no fault did harm' if fresh.coverage is None else fresh.coverage.text()}",
                f"false alarms  {self.false_alarms:,} of {self.checked:,} checks of clean runs",
                f"latency       {share_text(cost.latency)} measured, {100 * cost.predicted:.2f} % predicted, "
                f"budget {100 * self.budget:g} %",
                f"  passes      prefill {share_text(cost.prefill)}, decode {share_text(cost.decode)}",
                f"memory        {share}, budget {100 * self.memory_budget:g} %",
            ]
        )


def share_text(found: Rate) -> str:
    """A share that is added, `+1.80 % (+1.20 to +2.31)`."""
    return f"{100 * found.estimate:+.2f} % ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def rate_of(found: Estimate) -> Rate:
    """An estimate as records hold it."""
    return Rate(estimate=found.estimate, low=found.low, high=found.high, n=found.n)
