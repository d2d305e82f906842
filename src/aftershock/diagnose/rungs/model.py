"""Rungs inside the model: what the target computed, against what its own inputs should have given."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.judging import OVERALL
from aftershock.diagnose.replay import Deviation
from aftershock.diagnose.replaying import Replayed

CACHED = frozenset({"kv_scale", "kv_precision", "kv_stale", "kv_overwritten", "kv_missing"})
"""Causes that lie in the cache of keys and values."""


def reference_rung(own: Replayed) -> Rung:
    """Whether the reference computes what the replica does: else its model is not understood, and nothing that is said
    of a target would hold."""
    wrong = own.judgement.wrong
    if not wrong:
        said = f"the reference's own values are what its configuration says at {len(own.deviations)} points"
        return Rung(name="reference", state="agrees", said=said)
    first = wrong[0]
    said = (
        f"the reference itself computes {first.point} otherwise than its configuration says "
        f"(error ratio {first.deviation.ratio:.3g}, {first.where}): this model is not understood"
    )
    return Rung(name="reference", state="differs", said=said)


def activations_rung(run: Replayed, findings: Sequence[Finding]) -> Rung:
    """The components that are wrong on their own inputs, before the logits."""
    own = [one for one in findings if one.component != "logits" and one.cause not in CACHED]
    compared = [one for one in run.deviations if one.point.kind != "logits"]
    wrong = [one for one in run.judgement.wrong if one.point.kind != "logits"]
    if not own:
        worst = max((one.ratio for one in compared), default=1.0)
        said = f"{len(compared)} points agree on their own inputs, the largest error ratio is {worst:.2f}"
        return Rung(name="activations", state="agrees", said=said) if not wrong else _in_the_cache(len(wrong))
    kinds = Counter(one.point.kind for one in wrong)
    listed = ", ".join(f"{kind} ({count} layers)" if count > 1 else kind for kind, count in kinds.items())
    said = f"{len(wrong)} of {len(compared)} points deviate by more than rounding on their own inputs: {listed}"
    return Rung(name="activations", state="differs", said=said, findings=tuple(own))


def _in_the_cache(count: int) -> Rung:
    said = f"{count} points deviate, through what attention reads from the cache"
    return Rung(name="activations", state="agrees", said=said)


def cache_rung(run: Replayed, findings: Sequence[Finding]) -> Rung:
    """Tokens computed in later passes, which read keys and values back, beside those of the first passes."""
    own = tuple(one for one in findings if one.cause in CACHED)
    later = _later(run)
    count = int(later.sum())
    if own:
        return Rung(name="cache", state="differs", said=own[0].evidence, findings=own)
    if not count:
        why = "every token was computed in one pass with those before it: nothing was read back"
        return Rung(name="cache", state="not checked", said=why)
    attention = [one for one in run.deviations if one.point.kind in ("attention", "o")]
    early, late = (max((_ratio(one, rows) for one in attention), default=1.0) for rows in (~later, later))
    said = (
        f"attention of {count} tokens that read the cache has an error ratio of at most {late:.2f}, of the others "
        f"{early:.2f}"
    )
    if late > OVERALL * max(early, 1.0):
        return Rung(name="cache", state="differs", said=f"{said}: the error is in what is read back")
    return Rung(name="cache", state="agrees", said=said if late <= OVERALL else f"{said}: not for the cache's sake")


def _later(run: Replayed) -> torch.Tensor:
    """Whether a token was computed in a pass that does not hold the first token of its request, bool, shape
    (tokens,)."""
    later = torch.zeros(len(run.tokens.ids), dtype=torch.bool)
    for request in run.tokens.requests:
        own = range(request.start, request.stop)
        for numbers in run.tokens.passes:
            if request.start not in numbers:
                later[[number for number in numbers if number in own]] = True
    return later


def _ratio(deviation: Deviation, wanted: torch.Tensor) -> float:
    rows = torch.arange(len(wanted)) if deviation.rows is None else deviation.rows.cpu()
    kept = wanted[rows].nonzero()[:, 0]
    return deviation.of(kept).ratio if len(kept) else 1.0


def logits_rung(run: Replayed, findings: Sequence[Finding]) -> Rung:
    """The logits, on the last hidden state that the target had."""
    own = tuple(one for one in findings if one.component == "logits")
    compared = [one for one in run.deviations if one.point.kind == "logits"]
    if not compared:
        return Rung(name="logits", state="not checked", said="the target shows no logits")
    said = f"{len(compared[0].error)} rows of logits have an error ratio of {compared[0].ratio:.2f}"
    wrong = any(one.point.kind == "logits" for one in run.judgement.wrong)
    return Rung(name="logits", state="differs" if wrong else "agrees", said=said, findings=own)


def other_runs_rung(run: Replayed, others: Sequence[Replayed], findings: Sequence[Sequence[Finding]]) -> Rung:
    """Whether the same engine is wrong in the same components when it runs otherwise (one by one or together, with
    cached prefixes or without): `findings` are those of each of the other runs."""
    here = {one.point for one in run.judgement.wrong}
    differing = [number for number, one in enumerate(others) if {own.point for own in one.judgement.wrong} != here]
    if not differing:
        said = f"{len(others)} other runs of the target are wrong in the same points" if here else "all runs agree"
        return Rung(name="other runs", state="agrees", said=said)
    listed = ", ".join(str(number + 1) for number in differing)
    said = f"which points are wrong depends on how the target runs: not the same in run {listed} beside it"
    own = tuple(
        finding.model_copy(update={"evidence": f"in run {number + 1} beside the target's: {finding.evidence}"})
        for number in differing
        for finding in findings[number]
    )
    return Rung(name="other runs", state="differs", said=said, findings=own)


def shortest(run: Replayed, names: Sequence[str]) -> str:
    """The shortest request in which the first wrong point is wrong, and its first wrong token; "" where nothing is."""
    if not run.judgement.wrong:
        return ""
    wrong = run.judgement.wrong[0]
    rows = wrong.deviation.rows
    numbers = torch.arange(len(wrong.deviation.error)) if rows is None else rows.cpu()
    ratios = wrong.deviation.ratios.cpu()
    worst = numbers[ratios > min(OVERALL, float(ratios.max()) / 2)]
    found = list(_hit(worst, run.tokens.requests))
    if not found:
        return ""
    length, request, first = min(found)
    return f"request {names[request]} alone shows it: {length} tokens, {wrong.point} is wrong from token {first} on"


def _hit(numbers: torch.Tensor, requests: Sequence[slice]) -> Iterator[tuple[int, int, int]]:
    """Length and number of each request that holds one of these tokens, and the first such token in it."""
    for number, request in enumerate(requests):
        inside = numbers[(numbers >= request.start) & (numbers < request.stop)]
        if len(inside):
            yield request.stop - request.start, number, int(inside[0]) - request.start
