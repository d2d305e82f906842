"""From wrong points to causes: the change of the replica that makes what the target computed come out right."""

from collections import Counter
from collections.abc import Sequence

import torch

from aftershock.diagnose.diagnosis import Finding
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.judging import Judgement, Wrong
from aftershock.diagnose.points import LINEAR
from aftershock.diagnose.replay import Target
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.searching import Explained, Scene, again, searched
from aftershock.diagnose.trials import Trial
from aftershock.diagnose.weights import Part

ATTEMPTS = 2
"""A kind of points that nothing explains is searched in so many layers, and in the others only for known causes."""

TOGETHER = ({"q", "k", "v"}, {"gate", "up"}, {"q_norm", "k_norm"}, {"q_rope", "k_rope"})
"""Components that one piece of code, or one tensor, often has in it."""

FEW = 4
"""A few outputs are no more than one in so many."""


@torch.inference_mode()
def explain(replica: Replica, tokens: Tokens, target: Target, judgement: Judgement) -> tuple[Finding, ...]:
    """One finding for each cause, in call order; points that nothing explains have the cause `unknown`.

    `replica` has the target's arithmetic. Parameters are found from half of the rows; a cause is one when what it
    leaves is healthy on the other half and on all.
    """
    scene = Scene(replica, tokens, target, frozenset(wrong.point for wrong in judgement.wrong))
    groups: list[list[Explained]] = []
    known: list[Trial] = []
    missed: Counter[str] = Counter()
    for wrong in judgement.wrong:
        own = again(scene, wrong, known)
        if own is None:
            own = searched(scene, wrong) if missed[wrong.point.kind] < ATTEMPTS else Explained(wrong)
        if own.best is None:
            missed[wrong.point.kind] += 1
        elif all(own.best.candidate is not trial.candidate for trial in known):
            known.append(own.best)
        group = next((group for group in groups if _belongs(own, group)), None)
        if group is None:
            groups.append([own])
        else:
            group.append(own)
    return tuple(_finding(group, replica, tokens) for group in groups)


def _belongs(own: Explained, group: Sequence[Explained]) -> bool:
    """Whether a point is wrong for the reason of others: the same cause in the same component, with the same parameter
    where it is a choice or a number; or the same change of what lies together with it, in the same layer."""
    first = group[0]
    one, other = own.best, first.best
    if one is None or other is None:
        return one is other and own.wrong.point.kind == first.wrong.point.kind
    if one.candidate.cause != other.candidate.cause:
        return False
    alike = one.found == other.found
    if one.component == other.component:
        return alike or one.hypothesis.freedom in ("structure", "free")
    together = any({one.component, other.component} <= kinds for kinds in TOGETHER)
    beside = own.wrong.point.layer in {each.wrong.point.layer for each in group}
    return together and beside and (alike or one.hypothesis is other.hypothesis)


def _finding(group: Sequence[Explained], replica: Replica, tokens: Tokens) -> Finding:
    first = group[0]
    chosen, other = first.best, first.other
    layers = {layer for own in group for layer in (own.best.layers if own.best else (own.wrong.point.layer,))}
    said = Finding(
        component=first.wrong.point.kind,
        cause="unknown",
        evidence=_evidence(first, len(group)),
        layers=tuple(sorted(layers - {-1})),
        before=first.wrong.deviation.ratio,
        runner_up=None if other is None else other.candidate.cause,
        runner_up_after=None if other is None else other.after.ratio,
    )
    if chosen is None:
        return said.model_copy(update=_not_finite(first.wrong, tokens) or _by_elimination(first.wrong, replica))
    found = {
        "component": chosen.component,
        "cause": chosen.candidate.cause,
        "parameter": chosen.candidate.parameter,
        "found": _rounded(chosen.candidate.found),
        "reference": _rounded(chosen.candidate.reference),
        "after": chosen.after.ratio,
    }
    return said.model_copy(update=found)


def _not_finite(wrong: Wrong, tokens: Tokens) -> dict[str, str]:
    """NaN and infinities on one side alone, if there are any: where they begin."""
    rows, channels = wrong.deviation.error.isinf(), wrong.deviation.channel_error.isinf()
    if not rows.any():
        return {}
    first = int(rows.nonzero()[0]) if wrong.deviation.rows is None else int(wrong.deviation.rows[rows][0])
    request, own = next(pair for pair in enumerate(tokens.requests) if pair[1].stop > first)
    said = (
        f"{wrong.point} has NaN or infinities where it should have none: at {int(rows.sum())} of {len(rows)} tokens, "
        f"token {first - own.start} of request {request} the first, in {int(channels.sum())} of {len(channels)} "
        f"channels, {int(channels.nonzero()[0])} the first"
    )
    return {"cause": "not_finite", "evidence": said}


def _by_elimination(wrong: Wrong, replica: Replica) -> dict[str, str]:
    """What else is known of a point that nothing explains. A linear map of right inputs that is wrong in a few outputs,
    at all tokens, has wrong rows; which words, too few tokens may tell."""
    channels, deviation = wrong.channels, wrong.deviation
    few = channels.pattern == "some" and FEW * len(channels.numbers) <= len(deviation.channel_error)
    if wrong.point.kind not in LINEAR or len(wrong.parts) > 1 or wrong.positions.pattern != "all" or not few:
        return {}
    if len(deviation.error) > 2 * replica.weights[Part(wrong.point.kind, wrong.point.layer)].shape[-1]:
        return {}
    said = (
        f"{wrong.point} is wrong at all tokens in {channels}: rows of its weight, whose words so few tokens don't tell"
    )
    return {"cause": "weight_rows_wrong", "evidence": said, "parameter": "rows", "found": str(channels)}


def _rounded(value: float | str | None) -> float | str | None:
    """A number with six digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _evidence(first: Explained, count: int) -> str:
    wrong, chosen, other = first.wrong, first.best, first.other
    if chosen is None:
        said = f"no known cause explains {wrong.point} ({wrong.where})"
        hidden = [kind for kind in dict.fromkeys(part.kind for part in wrong.parts) if kind != wrong.point.kind]
        if hidden:
            said += f", or {' or '.join(hidden)}, which the target doesn't show"
        if other is None:
            return said
        if other.explained:
            return f"{said}; those tokens are as with {other.candidate.cause}, {other.found}, but the others are right"
        return f"{said}; {other.candidate.cause} leaves a ratio of {other.after.ratio:.3g}"
    said = (
        f"with it the error ratio of {wrong.point} falls from {wrong.deviation.ratio:.3g} to {chosen.after.ratio:.2g} "
        f"({wrong.where})"
    )
    if count > 1:
        said += f", and {count - 1} more point{'s' if count > 2 else ''} come{'' if count > 2 else 's'} out right"
    if other is None:
        return said
    if first.alike:
        return f"{said}; {other.candidate.cause} explains it as well"
    return f"{said}; the next best, {other.candidate.cause}, leaves {other.after.ratio:.3g}"
