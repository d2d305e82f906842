"""What a report says of a sweep: its combinations, its curves, its degradation model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aftershock.report.table import Table
from aftershock.report.wording import number, percent, rate
from aftershock.stats import Prediction, Term
from aftershock.study import (
    Curve,
    DegradationModel,
    Fragility,
    Measure,
    Rate,
    Sensitivity,
    Summary,
    SweptRate,
    severity_text,
)

LOST: dict[Measure, str] = {"accuracy": "accuracy", "kept": "answers that are neither SDC nor DUE"}
"""What a curve's shares are of."""


@dataclass(frozen=True)
class SweepRow:
    """One combination of a sweep: the value of each key, and the rates over its faults."""

    values: tuple[tuple[str, str], ...]
    faults: str
    silent: str
    detected: str
    lost: str
    accuracy: str
    loss: str


@dataclass(frozen=True)
class SweepContent:
    """The combinations, and tables of what follows from them."""

    rows: tuple[SweepRow, ...]
    tables: tuple[Table, ...]


def sweep_content(summary: Summary) -> SweepContent | None:
    """What there is to say of a study's sweep; None of a study without one."""
    if not summary.sweep:
        return None
    tables = [_curve_table(summary.curves)] if summary.curves else []
    if summary.sensitivity is not None:
        tables.append(_sensitivity_table(summary.sensitivity))
    if summary.degradation is not None:
        tables += _degradation_tables(summary.degradation)
    return SweepContent(tuple(map(_row, summary.sweep)), tuple(tables))


def _row(found: SweptRate) -> SweepRow:
    def written(share: Rate | None) -> str:
        return "" if share is None else rate(share.estimate, share.low, share.high)

    loss = found.relative_loss
    return SweepRow(
        tuple(found.values.items()),
        f"{found.trials:,}",
        written(found.sdc),
        written(found.due),
        written(found.lost),
        written(found.accuracy),
        "" if loss is None else rate(*loss),
    )


def _curve_table(curves: Sequence[Curve]) -> Table:
    measure = curves[0].measure
    by_rate = any(curve.by_rate is not None for curve in curves)
    header = [*(curves[0].group or ("",)), "golden"]
    for kind in ("rate", "errors") if by_rate else ("errors",):
        header += [f"AWRCL over {kind}", f"half lost at {kind}"]
    rows = []
    for curve in curves:
        row = [*(curve.group.values() or ("all",)), percent(curve.baseline)]
        row += _fragility_cells(curve.by_rate) if by_rate else ()
        rows.append((*row, *_fragility_cells(curve.by_errors)))
    return Table("How fast it falls", " ".join(_curve_notes(curves, measure)), tuple(header), tuple(rows))


def _curve_notes(curves: Sequence[Curve], measure: Measure) -> Iterator[str]:
    yield (
        f"AWRCL: average relative loss of {LOST[measure]}, each fault's on its own items. The paper that defines it "
        "leaves the weights open; here all severities weigh the same."
    )
    averaged = next((curve.by_errors for curve in curves if curve.by_errors and curve.by_errors.awrcl), None)
    if averaged is not None:
        counts = ", ".join(f"{count:.3g}" for count in averaged.severities)
        yield f"Over injected errors the average is at the numbers of errors that all groups reached: {counts}."
    elif any(curve.by_errors for curve in curves):
        yield (
            "The groups reached no number of injected errors in common, so there is no average over it: sweep over "
            "count, or over more rates."
        )
    yield (
        "Half lost at: the severity at which half is gone, interpolated on a logarithmic axis; < and > mean below and "
        "above those tried. Brackets hold 95 % intervals, by resampling faults: where every fault came to the same "
        "they have no width."
    )


def _fragility_cells(found: Fragility | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    estimate, low, high = (severity_text(value, found.tried) for value in found.half_lost)
    return "" if found.awrcl is None else rate(*found.awrcl), f"{estimate} [{low}, {high}]"


def _sensitivity_table(found: Sensitivity) -> Table:
    return Table(
        "Which components are sensitive",
        "ReaLM (DAC 2025) finds sensitive what is added to the residual stream as it is, and all else resilient. Held "
        "against this sweep: every sensitive component must lose more of golden's right answers than every resilient "
        "one, at the same values of the other keys. Shown is the pair that decides: the least certain gap, or one that "
        "is clearly negative.",
        ("sensitive", "resilient", "gap, points", "between", "p", "verdict"),
        (
            (
                ", ".join(found.sensitive),
                ", ".join(found.resilient),
                "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * bound for bound in found.gap)),
                f"{found.strong} and {found.weak}",
                number(found.p_value),
                found.verdict,
            ),
        ),
    )


def _degradation_tables(model: DegradationModel) -> Iterator[Table]:
    terms: list[tuple[str, Term | None]] = [
        *((f"S of {name}: loss by one error in the first layer", term) for name, term in model.sensitivity.items()),
        ("a, amplification: exp(-a depth)", model.depth),
        ("r, redundancy: (N / smallest N)^-r", model.size),
        ("L, the most that many errors cost", model.ceiling),
    ]
    yield Table(
        "Degradation model",
        "Relative loss = L (1 - exp(-D / L)), D = N P S exp(-a depth) (N / smallest N)^-r, fitted by least squares to "
        f"all {model.cells:,} combinations; depth is 0 in the first layer and 1 in the last, N P the number of errors. "
        f"What is lost: {LOST[model.loss_of]}. A term that the combinations can't tell from S is not fitted, S then "
        "stands for the product. No standard error: the number lies on the edge of what is allowed.",
        ("term", "value", "standard error"),
        tuple(_term_row(name, term) for name, term in terms),
    )
    tried = model.held_out
    gain = tried.gain
    yield Table(
        "Held-out combinations",
        "Every combination is predicted from four fifths of the others. The model's absolute error is smaller than "
        f"that from the number of errors alone by {gain.estimate:.4f} [{gain.low:.4f}, {gain.high:.4f}], mean over "
        "combinations with its 95 % interval.",
        ("predicted from", "mean absolute error of the relative loss", "rank correlation"),
        (
            _prediction_row("the model", tried.model),
            _prediction_row("the number of errors N P alone", tried.errors_alone),
            _prediction_row("the mean", tried.mean),
        ),
    )


def _term_row(name: str, term: Term | None) -> tuple[str, ...]:
    if term is None:
        return name, "not told apart from S", ""
    return name, number(term.value), number(term.standard_error)


def _prediction_row(name: str, found: Prediction) -> tuple[str, ...]:
    correlation = "–" if found.rank_correlation is None else f"{found.rank_correlation:.2f}"
    return name, f"{found.mean_absolute_error:.4f}", correlation
