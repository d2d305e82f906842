"""What a report says of the seventeen published takeaways."""

from collections.abc import Sequence
from dataclasses import dataclass

from aftershock.study import Takeaway

_LABELS = {
    "confirmed": "content confirmed by summaries of the paper",
    "reconstructed": "content reconstructed from the order of the paper's findings",
}


@dataclass(frozen=True)
class TakeawayRow:
    """One takeaway that could be tested. `low`, `high` and `at` are the places of the interval's bounds and of the
    estimate on a bar from 0 to 1 with "no effect" in its middle."""

    number: int
    claim: str
    label: str
    known: str
    verdict: str
    test: str
    criterion: str
    effect: str
    interval: str
    unit: str
    p: str
    n: str
    sides: str
    low: float
    high: float
    at: float


@dataclass(frozen=True)
class TakeawayContent:
    """The section in words; `untested` says which takeaways the studies can't speak of."""

    introduction: str
    rows: tuple[TakeawayRow, ...]
    untested: str
    reasons: tuple[tuple[str, str], ...]


def takeaway_content(found: Sequence[Takeaway]) -> TakeawayContent | None:
    """What to say of takeaways, of one study or of several together; None where none could be tested."""
    tested = [one for one in found if one.tested]
    if not tested:
        return None
    counts = [f"{sum(one.verdict == verdict for one in tested)} {words}" for verdict, words in _COUNTED]
    untested = [one for one in found if not one.tested]
    return TakeawayContent(
        f"LLMFI (arXiv 2606.02430) draws seventeen takeaways from its fault injections. {len(tested)} could be tested "
        f"here: {', '.join(counts)}. Effects are in points if not said otherwise, an interval holds 95 %, and p is "
        "corrected for the tests made together.",
        tuple(map(_row, tested)),
        _untested(untested),
        tuple((f"{one.number}. {one.claim}", f"{one.why}.") for one in untested),
    )


_COUNTED = (("holds", "hold"), ("does not hold", "do not"), ("not enough evidence", "are open"))


def _row(one: Takeaway) -> TakeawayRow:
    effect = one.effect
    assert effect is not None
    assert one.p_holm is not None
    reach = max(abs(effect.low), abs(effect.high), abs(effect.estimate)) or 1.0
    low, high, at = (0.5 + 0.5 * value / reach for value in (effect.low, effect.high, effect.estimate))
    return TakeawayRow(
        number=one.number,
        claim=one.claim,
        label=one.label,
        known=_LABELS[one.label],
        verdict=one.verdict,
        test=one.test,
        criterion=one.criterion,
        effect=f"{effect.estimate:+.2f}",
        interval=f"[{effect.low:+.2f}, {effect.high:+.2f}]",
        unit=effect.unit,
        p="< 0.0001" if one.p_holm < 1e-4 else f"{one.p_holm:.2g}",
        n=" / ".join(f"{count:,}" for count in one.n.values()),
        sides=", ".join(f"{count:,} {name}" for name, count in one.n.items()),
        low=low,
        high=high,
        at=at,
    )


def _untested(untested: Sequence[Takeaway]) -> str:
    if not untested:
        return "All seventeen could be tested."
    numbers = ", ".join(str(one.number) for one in untested)
    return f"Not tested here: {numbers}."
