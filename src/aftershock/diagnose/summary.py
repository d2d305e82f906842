"""What a report shows beside the findings: what was compared, curve, picture, and how values were told apart."""

from collections.abc import Iterator, Sequence

from aftershock.capture import Bundle
from aftershock.diagnose.curve import free_ratios
from aftershock.diagnose.diagnosis import CurvePoint, Picture, Subject
from aftershock.diagnose.pictures import picture_of, spans
from aftershock.diagnose.replaying import Replayed
from aftershock.diagnose.replica import Replica
from aftershock.models import LoadedModel


def subject_of(reference: LoadedModel, target: Bundle) -> Subject:
    """What was compared."""
    manifest = target.manifest
    return Subject(
        target=f"{manifest.model} in {manifest.engine.name} {manifest.engine.version}",
        reference=f"{reference.spec} in transformers",
        dtype=manifest.dtype,
        requests=len(manifest.requests),
        tokens=manifest.tokens,
    )


def curve_of(replica: Replica, run: Replayed) -> Iterator[CurvePoint]:
    """Error ratios in call order, of each point alone and in the run."""
    free = free_ratios(replica, run.tokens, run.target)
    for one in run.deviations:
        yield CurvePoint(point=str(one.point), local=one.ratio, free=free.get(one.point))


def picture_at_onset(run: Replayed, names: Sequence[str]) -> Picture | None:
    """The layer in which the error begins, or in which ratios are largest, and what lies outside of layers."""
    worst = max(run.deviations, key=lambda one: one.ratio)
    begin = run.judgement.wrong[0].point if run.judgement.wrong else worst.point
    shown = [one for one in run.deviations if one.point.layer in (begin.layer, -1)]
    return picture_of(shown, spans(names, run.tokens.lengths))


def alignment_of(run: Replayed) -> str:
    """How the target's values were told apart, in a sentence."""
    known = [match.evidence for match in run.alignment.matches.values()]
    listed = ", ".join(f"{known.count(way)} by {way}" for way in dict.fromkeys(known))
    hidden = len(run.alignment.unmatched_points)
    odd = run.alignment.disagreements
    more = f"; {odd[0]}{f' and {len(odd) - 1} more' if len(odd) > 1 else ''}" if odd else ""
    return f"{len(known)} points are known ({listed}), {hidden} are not shown{more}"
