"""Records as polars frames: one row per trial, one row per (trial, item), one row per estimate."""

import json
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from aftershock.report.wording import rate, visible
from aftershock.stats import Estimate, by_label, design_of, weighted_by_label
from aftershock.study import DUE, SDC, GoldenRecord, ItemRecord, TrialRecord
from aftershock.tasks import OUTCOMES

OUTSIDE = "–"
"""Layer label of what lies in no single decoder layer (embedding, last norm, lm_head, faults in several)."""

ALL_SITES = "all"
"""Site label of the rows that pool every site."""

_TRIAL_SCHEMA: dict[str, pl.DataType] = {
    "trial": pl.Int64(),
    "site": pl.String(),
    "component": pl.String(),
    "layer": pl.Int64(),
    "stage": pl.String(),
    "bit": pl.Int64(),
    "bit_class": pl.String(),
    "fault_count": pl.Int64(),
    "faults": pl.String(),
    "tensor": pl.String(),
    "old_value": pl.Float64(),
    "new_value": pl.Float64(),
    "items": pl.Int64(),
    "eligible": pl.Int64(),
    **{outcome: pl.Int64() for outcome in OUTCOMES},
    "sdc_share": pl.Float64(),
    "due_share": pl.Float64(),
    "score_change": pl.Float64(),
    "rmse": pl.Float64(),
    "kl": pl.Float64(),
    "strikes_digest": pl.String(),
    "stratum": pl.String(),
    "stratum_chance": pl.Float64(),
    "round": pl.Int64(),
    "expert": pl.Int64(),
    "expert_use": pl.Float64(),
    "use": pl.String(),
}

_ITEM_SCHEMA: dict[str, pl.DataType] = {
    "trial": pl.Int64(),
    "item": pl.String(),
    "kind": pl.String(),
    "group": pl.String(),
    "outcome": pl.String(),
    "eligible": pl.Boolean(),
    "golden_right": pl.Boolean(),
    "right": pl.Boolean(),
    "golden_output": pl.String(),
    "output": pl.String(),
    "score_change": pl.Float64(),
    "first_difference": pl.Int64(),
    "rmse": pl.Float64(),
    "kl": pl.Float64(),
}


def trial_frame(trials: Iterable[TrialRecord]) -> pl.DataFrame:
    """One row per trial.

    The outcome columns count the eligible items; `sdc_share` and `due_share` are their shares (null where no item
    is eligible). `bit` is set where the faults flip one single bit position, `old_value` and `new_value` are
    those of the first strike, `score_change`, `rmse` and `kl` the means over the items. `stratum`, its chance in the
    population and `round` are null where faults were drawn uniformly; `expert`, `expert_use` and `use`, its class,
    where no expert's weights were struck.
    """
    return pl.DataFrame((_trial_row(trial) for trial in trials), schema=_TRIAL_SCHEMA)


def _trial_row(trial: TrialRecord) -> dict[str, object]:
    eligible = trial.eligible
    counts: dict[str, int] = {outcome: sum(item.outcome == outcome for item in eligible) for outcome in OUTCOMES}
    strike = trial.strikes[0] if trial.strikes else None
    return {
        "trial": trial.trial,
        "site": trial.site,
        "component": trial.component,
        "layer": trial.layer,
        "stage": trial.stage,
        "bit": trial.bits[0] if len(trial.bits) == 1 else None,
        "bit_class": trial.bit_class,
        "fault_count": trial.fault_count,
        "faults": "\n".join(trial.faults),
        "tensor": strike and strike.tensor,
        "old_value": strike and strike.old_value,
        "new_value": strike and strike.new_value,
        "items": len(trial.items),
        "eligible": len(eligible),
        **counts,
        "sdc_share": _share(sum(counts[outcome] for outcome in SDC), len(eligible)),
        "due_share": _share(sum(counts[outcome] for outcome in DUE), len(eligible)),
        "score_change": _mean(item.score_change for item in trial.items),
        "rmse": _mean(item.rmse for item in trial.items),
        "kl": _mean(item.kl for item in trial.items),
        "strikes_digest": trial.strikes_digest,
        "stratum": trial.stratum,
        "stratum_chance": trial.stratum_chance,
        "round": trial.round,
        "expert": trial.expert,
        "expert_use": trial.expert_use,
        "use": trial.use_class,
    }


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    # Of infinities of both signs NaN, without a word.
    return sum(known) / len(known) if known else None


def item_frame(trials: Iterable[TrialRecord], golden: Sequence[GoldenRecord]) -> pl.DataFrame:
    """One row per (trial, item). `output` is null where it equals `golden_output`."""
    answers = {record.item: record for record in golden}
    return pl.DataFrame(
        (_item_row(trial.trial, item, answers[item.item]) for trial in trials for item in trial.items),
        schema=_ITEM_SCHEMA,
    )


def _item_row(trial: int, item: ItemRecord, answer: GoldenRecord) -> dict[str, object]:
    return {
        "trial": trial,
        "item": item.item,
        "kind": answer.kind,
        "group": answer.group,
        "outcome": item.outcome,
        "eligible": item.eligible,
        "golden_right": answer.right,
        "right": item.right,
        "golden_output": answer.output,
        "output": item.output,
        "score_change": item.score_change,
        "first_difference": item.first_difference,
        "rmse": item.rmse,
        "kl": item.kl,
    }


def rate_frame(trials: pl.DataFrame, by: Sequence[str], share: str = "sdc_share") -> pl.DataFrame:
    """Estimates of the mean of `share` for each combination of the columns `by`, pooled and for each site.

    Rows: `site` ("all" or one of the frame's sites), the columns `by`, then `estimate`, `low`, `high` (shares,
    95 % interval over faults), `n` (faults with an eligible item) and `written` (the estimate as a reader sees it).
    Combinations that no fault hit have no row.
    """
    columns = ("site", *by)
    named = pl.all_horizontal(pl.lit(True), *(pl.col(column).is_not_null() for column in by))
    counted = trials.with_columns(pl.when(named).then(pl.col(share)).alias(share))
    pooled = counted.with_columns(pl.lit(ALL_SITES).alias("site"))
    estimates = {**_estimates(pooled, columns, share), **_estimates(counted, columns, share)}
    return pl.DataFrame(
        [
            (*label, one.estimate, one.low, one.high, one.n, rate(one.estimate, one.low, one.high))
            for label, one in estimates.items()
        ],
        schema={column: counted.schema[column] for column in columns}
        | {"estimate": pl.Float64(), "low": pl.Float64(), "high": pl.Float64()}
        | {"n": pl.Int64(), "written": pl.String()},
        orient="row",
    ).sort(columns)


def _estimates(trials: pl.DataFrame, columns: Sequence[str], share: str) -> dict[tuple[object, ...], Estimate]:
    """Estimate of each combination of the columns; of a stratified study weighted, each with all trials for context."""
    labels = list(trials.select(columns).iter_rows())
    shares = trials[share].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if trials.is_empty() or trials["stratum"].has_nulls():
        return by_label(labels, shares)
    drawn = design_of(trials["stratum"].to_list(), trials["stratum_chance"].to_numpy(), trials["round"].to_numpy())
    return weighted_by_label(labels, shares, drawn)


def outcome_frame(trials: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Rows of `rate_frame` for the share of each outcome, with a column `outcome`. `unreached` is never eligible."""
    shares = trials.with_columns(pl.col(outcome) / pl.col("eligible") for outcome in OUTCOMES).with_columns(
        pl.col(outcome).fill_nan(None) for outcome in OUTCOMES
    )
    return pl.concat(
        rate_frame(shares, by, outcome).with_columns(pl.lit(outcome).alias("outcome")) for outcome in OUTCOMES
    )


def growth_frame(trials: Iterable[TrialRecord]) -> pl.DataFrame:
    """One row per traced trial and depth: the relative error of the residual stream.

    `depth` 0 is the embedding, d the output of layer d - 1. `error` is null where it is zero (a logarithmic axis
    has no place for it) or not finite, which `finite` tells; `outcome` is the trial's worst.
    """
    return pl.DataFrame(
        [
            {
                "trial": trial.trial,
                "site": trial.site,
                "fault": visible(trial.faults[0]) if trial.faults else "",
                "outcome": max((item.outcome for item in trial.items), key=_severity, default="masked"),
                "depth": depth,
                "error": error if 0 < error < float("inf") else None,
                "finite": bool(np.isfinite(error)),
            }
            for trial in trials
            for depth, error in enumerate(trial.residual_error or ())
        ],
        schema={
            "trial": pl.Int64(),
            "site": pl.String(),
            "fault": pl.String(),
            "outcome": pl.String(),
            "depth": pl.Int64(),
            "error": pl.Float64(),
            "finite": pl.Boolean(),
        },
    )


def _severity(outcome: str) -> int:
    return -1 if outcome == "unreached" else OUTCOMES.index(outcome)


def csv_text(frame: pl.DataFrame) -> str:
    """The frame as CSV: one line per row, missing values empty.

    Text that comes from a model or a fault log is written as a JSON string, so that a line break stays within its
    row and no spreadsheet takes an answer for a formula; `json.loads` gives it back.
    """
    foreign = [column for column in ("faults", "golden_output", "output") if column in frame.columns]
    quoted = (
        pl.col(column).map_elements(lambda text: json.dumps(text), return_dtype=pl.String()) for column in foreign
    )
    return frame.with_columns(quoted).write_csv()
