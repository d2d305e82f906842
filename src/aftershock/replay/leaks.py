"""Values that attention leaks back to earlier tokens of the same call."""

from collections.abc import Sequence

from aftershock.faults import Fault
from aftershock.models import FIRST_TOKEN
from aftershock.replay.golden import Forced, GoldenRun
from aftershock.replay.pending import Row, first_token_of


def cuts_against_leaks(
    golden: GoldenRun, forced: Forced, faults: tuple[Fault, ...], rows: Sequence[Row]
) -> frozenset[int]:
    """Pass numbers before which the run must be cut as well, so that the first logits of each answer that are not
    finite are known not to come from later tokens; none where all are known.

    A value so large that attention overflows reaches the tokens before it in the same call, through the mask: zero
    times infinity, or infinity less infinity. A token in a call of its own is out of reach, and what leaks back within
    the prompt leaks in decoding too.
    """
    context = golden.block.context_width
    known = {call.stop - context for call in golden.calls if call.stop in (context, call.start + 1)}
    doubtful = [
        row.broken
        for number, row in enumerate(rows)
        if row.broken is not None
        and row.broken not in known
        and golden.choices.finite[number, row.broken]
        and not (row.broken == first_token_of(faults) and _overflows_itself(golden, forced, number, row.broken))
    ]
    if not doubtful:
        return frozenset()
    token = min(doubtful)
    return frozenset(FIRST_TOKEN + place for place in (token, token + 1) if place)


def _overflows_itself(golden: GoldenRun, forced: Forced, row: int, token: int) -> bool:
    """Whether a token's own values are the first that are not finite: in the lowest layer that has any, no token before
    it in the same call has one. What leaks back reaches every token of the call before its source, one layer up."""
    column = golden.block.context_width - 1 + token
    if any(call.start == column for call in golden.calls):
        return False
    for columns in forced.own_states(row):
        finite = columns.isfinite().all(dim=-1).all(dim=2)
        broken = ~finite.all(dim=1)
        if broken.any():
            layer = int(broken.any(dim=1).int().argmax())
            return int(broken[layer].int().argmax()) == column and not bool(finite[layer, 1, column])
    return False
