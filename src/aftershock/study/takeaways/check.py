"""Hold the seventeen takeaways against studies."""

from collections.abc import Sequence

import numpy as np

from aftershock.stats import Estimate, holm
from aftershock.study.store import StoredStudy
from aftershock.study.takeaways.cells import Cell, cells
from aftershock.study.takeaways.claim import Claim
from aftershock.study.takeaways.claims import CLAIMS
from aftershock.study.takeaways.contrasts import Finding
from aftershock.study.takeaways.records import Effect, LeftOut, Takeaway, TakeawayVerdict

LEVEL = 0.05
"""Chance of any mistake among the takeaways tested together, for each of the two verdicts."""


def takeaways(studies: Sequence[StoredStudy]) -> tuple[Takeaway, ...]:
    """The seventeen takeaways of LLMFI in their order, each with what the studies say of it.

    One study, or several of other models, tasks and data types. Whatever `holds` or `does not hold` does so at 5 %,
    corrected over all takeaways that could be tested (Holm).
    """
    known = cells(studies)
    found = [_finding(claim, known) for claim in CLAIMS]
    tested = [
        (claim, one.looks, _scaled(one.estimate, claim.scale))
        for claim, one in zip(CLAIMS, found, strict=True)
        if one.estimate is not None
    ]
    estimates = {claim.number: estimate for claim, _, estimate in tested}
    p_for = {claim.number: claim.hypothesis.p_for(estimate) for claim, _, estimate in tested}
    p_against = {
        claim.number: min(1.0, looks * claim.hypothesis.p_against(estimate)) for claim, looks, estimate in tested
    }
    holm_for, holm_against = _holm(p_for), _holm(p_against)
    answers = []
    for claim, one in zip(CLAIMS, found, strict=True):
        number, why = claim.number, one.why
        verdict: TakeawayVerdict = "not enough evidence"
        p, adjusted = p_for, holm_for
        if number in estimates:
            if holm_for[number] < LEVEL:
                verdict = "holds"
            elif holm_against[number] < LEVEL:
                verdict, p, adjusted = "does not hold", p_against, holm_against
            else:
                why = "neither is significant once corrected for all that was tested"
        answers.append(
            Takeaway(
                number=number,
                claim=claim.text,
                label=claim.label,
                test=claim.test,
                criterion=claim.criterion,
                verdict=verdict,
                effect=_effect(estimates.get(number), claim.unit),
                p_value=p.get(number),
                p_holm=adjusted.get(number),
                n=one.n,
                cells=one.cells,
                left_out=one.left_out,
                why=why,
            )
        )
    return tuple(answers)


def _finding(claim: Claim, known: Sequence[Cell]) -> Finding:
    """What the studies fit for the claim say, with those that are not fit."""
    reasons = {cell.name: cell.unfit or (None if claim.near_chance else cell.blind) for cell in known}
    found = claim.evidence([cell for cell in known if reasons[cell.name] is None])
    unfit = tuple(LeftOut(cell=cell, why=why) for cell, why in reasons.items() if why is not None)
    why = found.why
    if unfit and len(unfit) == len(known):
        why = "; ".join(dict.fromkeys(one.why for one in unfit))
    return Finding(found.estimate, found.n, found.cells, (*unfit, *found.left_out), why, found.looks)


def _scaled(found: Estimate, scale: float) -> Estimate:
    return Estimate(scale * found.estimate, scale * found.low, scale * found.high, found.n)


def _holm(p_values: dict[int, float]) -> dict[int, float]:
    if not p_values:
        return {}
    return dict(zip(p_values, holm(np.array(list(p_values.values()))).tolist(), strict=True))


def _effect(found: Estimate | None, unit: str) -> Effect | None:
    return None if found is None else Effect(estimate=found.estimate, low=found.low, high=found.high, unit=unit)
