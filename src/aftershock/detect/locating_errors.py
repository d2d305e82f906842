"""Where an error lies that checksums saw: the column of an output; row, column and clean word of a weight.

A second checksum, with outputs times 1 to N, tells where (Jou and Abraham, Proc. IEEE 74, 1986): an error d in output j
deviates by d in the plain sum and by (j + 1) d in the weighted one. A weight that changed by d in row j and column k
deviates by d A_ik for every token i: several tokens tell k, and the two sums j. The word itself comes back from
integer sums of the column's words, which round nothing. Those weigh words by `multipliers` and not by 1 to N, of which
two equal changes in rows r and r + 2 would look like one of row r + 1.
"""

from dataclasses import dataclass
from math import isfinite

import torch

from aftershock.detect.linear_checksum import LinearChecksum, in_double
from aftershock.detect.lines import column_sums
from aftershock.detect.multipliers import multipliers
from aftershock.detect.products import RowCheck, expected_sums, signed
from aftershock.detect.rounding import Rounding
from aftershock.numerics import words


@dataclass(frozen=True)
class PlacedChecksum:
    """The second checksum of a linear layer: its weight's columns, each row times its place, 1 to N, and the sign that
    the first checksum gives it. `sums` has shape (inputs,), `bias_sum` none, and `places`, shape (outputs,), are what
    outputs are multiplied by; all fp32 where the weight is. Sums were taken in fp64 of the stored words."""

    sums: torch.Tensor
    bias_sum: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class WrongColumn:
    """The output column of each wrong row, int64 (...), and by how many columns it may be wrong, fp32 (...)."""

    column: torch.Tensor
    within: torch.Tensor


@dataclass(frozen=True)
class WrongWeight:
    """A weight that changed: its `column` and by how much it did (`size`: damaged minus clean).

    `row` is the nearest, `within` by how many rows it may be wrong; `columns` are all that explain the deviations: more
    than one where the tokens are too few or too alike.
    """

    row: int
    within: float
    column: int
    columns: tuple[int, ...]
    size: float


@dataclass(frozen=True)
class ChangedColumn:
    """Words of one column that differ from its clean sums. `row` and `clean`, the word (a signed integer) that was
    there, are None where more than one word changed."""

    column: int
    row: int | None
    clean: int | None


@torch.no_grad()
def placed_checksum(checksum: LinearChecksum, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PlacedChecksum:
    """The second checksum beside a `checksum` of the same weight, shape (N, K), and bias, (N,) or None."""
    places = torch.arange(1, checksum.outputs + 1, dtype=torch.float64, device=weight.device)
    places = signed(places, checksum)
    sums = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for exact, own in in_double(weight, places):
        sums += own @ exact
    shift = torch.zeros_like(places) if bias is None else bias.double()
    return PlacedChecksum(sums.float(), (places @ shift).float(), places.float())


def weighted_deviations(inputs: torch.Tensor, outputs: torch.Tensor, placed: PlacedChecksum) -> torch.Tensor:
    """Deviations of sums of outputs times 1 to N, fp32 (...): `inputs` (..., K), `outputs` (..., N)."""
    return expected_sums(inputs, placed.sums) + placed.bias_sum - expected_sums(outputs, placed.places)


def wrong_columns(check: RowCheck, weighted: torch.Tensor, outputs: int) -> WrongColumn:
    """Columns of single wrong outputs, from rows' checks and their `weighted` deviations, both (...).

    Rounding is at most the threshold T in the plain sum, and so at most N T in the sum about any column: the place is
    known to N T / |D| columns.
    """
    place = (weighted / check.deviation).nan_to_num(1.0).round()
    column = place.clamp(1, outputs).long() - 1
    return WrongColumn(column, outputs * check.threshold / check.deviation.abs())


def wrong_weight(
    inputs: torch.Tensor, check: RowCheck, weighted: torch.Tensor, outputs: int, rounding: Rounding
) -> WrongWeight | None:
    """The single weight whose change explains the deviations of some tokens, or None where none does.

    `inputs` is (tokens, K), `check` and `weighted` (tokens,). Token i has D_i = -size A_ik, to its threshold and to
    what `rounding` does to a wrong output. Reads its result back from the device.
    """
    own = rounding.output + rounding.accumulation * inputs.shape[1] ** 0.5
    # In fp64, as squares of what a wrong exponent does leave fp32.
    deviation = check.deviation.double()
    weights = 1 / (check.threshold.double() + own * deviation.abs())
    rows = inputs.double() * weights[:, None]
    plain, other = deviation * weights, weighted.double() * weights
    power = rows.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    slopes = (plain @ rows) / power
    # Where each token errs by 1 at most, the slope errs too, and moves what is left of the others.
    most = 1 + rows.abs() * rows.abs().sum(0) / power
    explained = ((plain[:, None] - slopes * rows).abs() <= most).all(0)
    fitting = explained & (slopes != 0)
    gain = torch.where(fitting, (plain @ rows).square() / power, -1.0)
    best = int(gain.argmax())
    if not bool(fitting[best]):
        return None
    slope, total = float(slopes[best]), float(power[best])
    place = float(other @ rows[:, best]) / total / slope
    known = isfinite(place)
    return WrongWeight(
        row=min(max(round(place), 1), outputs) - 1 if known else 0,
        # The slope's own error is at most the root of the tokens over the root of the power, each row being within 1.
        within=outputs * (len(rows) / total) ** 0.5 / abs(slope) if known else outputs,
        column=best,
        columns=tuple(torch.nonzero(fitting)[:, 0].tolist()),
        size=-slope,
    )


def column_word_sums(weight: torch.Tensor) -> torch.Tensor:
    """Sums of a weight's words, signed integers, by column, plain and times the `multipliers` of their rows: int64,
    from shape (N, K) to (K, 2), exact modulo 2^64."""
    return column_sums(_integers(weight))


def changed_column(weight: torch.Tensor, column: int, clean_sums: torch.Tensor) -> ChangedColumn | None:
    """Compare a column's words with the sums taken when they were clean (`column_word_sums`); None where they agree.

    One changed word is found and told to the bit, however many of its bits changed: its row is the only one whose
    multiplier makes the weighted sum of the plain one. Several look like one of a given row with chance 2^-32 at most,
    were the multipliers drawn at random (see `lines`); where more than one row fits, none is named.
    """
    now = column_word_sums(weight[:, column : column + 1])[0]
    plain, weighted = now - clean_sums[column].to(now.device)
    if not bool(plain) and not bool(weighted):
        return None
    own = _integers(weight)
    rows = (multipliers(len(own), device=own.device) * plain == weighted).nonzero()[:, 0].tolist()
    if bool(plain) and len(rows) == 1:
        (row,) = rows
        clean = int(own[row, column]) - int(plain)
        span = torch.iinfo(own.dtype)
        if span.min <= clean <= span.max:
            return ChangedColumn(column, row, clean)
    return ChangedColumn(column, None, None)


@torch.no_grad()
def put_back(weight: torch.Tensor, change: ChangedColumn) -> bool:
    """Write the clean word, in place; False where it is not known."""
    if change.row is None or change.clean is None:
        return False
    _integers(weight)[change.row, change.column] = change.clean
    return True


def _integers(weight: torch.Tensor) -> torch.Tensor:
    """The words, a view; integers as they are."""
    return words(weight) if weight.is_floating_point() else weight
