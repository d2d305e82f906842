"""A plan for a terminal."""

from aftershock.protect import ProtectionPlan
from aftershock.study import Rate


def plan_text(found: ProtectionPlan) -> str:
    """What was chosen, what it does to faults, and what it costs, in lines."""
    fresh, cost = found.fresh, found.cost
    moved = fresh.difference
    by = f"{100 * moved.estimate:+.2f} points ({100 * moved.low:+.2f} to {100 * moved.high:+.2f})"
    share = f"{cost.nbytes / 1e6:,.2f} MB, {100 * cost.nbytes / found.model_bytes:.2f} % of the model"
    return "\n".join(
        [
            "chosen        " + "; ".join(found.chosen),
            f"fresh faults  SDC {fresh.before.text()} before",
            f"              SDC {fresh.after.text()} after",
            f"  difference  {by}, paired by {moved.n} faults, p = {fresh.p_value:.2g}; "
            f"{fresh.mended} mended, {fresh.caused} caused",
            f"chosen on     SDC {found.recorded.before.text()} before",
            f"              SDC {found.recorded.after.text()} after",
            f"coverage      {'no fault did harm' if fresh.coverage is None else fresh.coverage.text()}",
            f"false alarms  {found.false_alarms:,} of {found.checked:,} checks of clean runs",
            f"latency       {_added(cost.latency)} measured, {100 * cost.predicted:.2f} % predicted, "
            f"budget {100 * found.budget:g} %",
            f"  passes      prefill {_added(cost.prefill)}, decode {_added(cost.decode)}",
            f"memory        {share}, budget {100 * found.memory_budget:g} %",
        ]
    )


def _added(found: Rate) -> str:
    return f"{100 * found.estimate:+.2f} % ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
