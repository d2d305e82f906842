"""From the rungs of the ladder to one verdict."""

from collections.abc import Sequence

from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.points import AFTER, KINDS

OUTSIDE = {
    "tokens": "the target reads other tokens",
    "stop": "the target ends its texts elsewhere",
    "sampler": "the target samples otherwise",
}
"""What is wrong where it is no component of the model."""

LAST = 1 << 30
"""A layer after all others."""


def findings_of(rungs: Sequence[Rung]) -> tuple[Finding, ...]:
    """All errors, the first one that the ladder meets first; those inside the model in the order of its calls. A
    disagreement of settings or words counts as an error of its own where nothing that was computed can bear it out or
    refute it."""
    computed = any(rung.name == "activations" and rung.state != "not checked" for rung in rungs)
    sampled = any(rung.name == "sampler" and rung.state != "not checked" for rung in rungs)
    found = [(_stage(rung), one) for rung in rungs for one in rung.findings]
    kept = [(stage, one) for stage, one in found if one.confirmed or not _refuted(one, computed, sampled)]
    return tuple(one for _, one in sorted(kept, key=lambda pair: (not pair[1].confirmed, pair[0], _call(pair[1]))))


def _stage(rung: Rung) -> int:
    """Where a rung stands: before the model, in it, after it."""
    return {"activations": 1, "cache": 1, "logits": 1, "other runs": 1, "sampler": 2}.get(rung.name, 0)


def _call(finding: Finding) -> tuple[int, int]:
    """Where a component stands in the order of calls."""
    if finding.component not in KINDS:
        return 0, 0
    outside = LAST if finding.component in AFTER else -1
    return min(finding.layers, default=outside), KINDS.index(finding.component)


def _refuted(lead: Finding, computed: bool, sampled: bool) -> bool:
    """Whether what was computed decided about a lead: had it an effect, it would be a confirmed finding."""
    return sampled if lead.component == "sampler" else lead.component == "stop" or computed


def backed(finding: Finding, rungs: Sequence[Rung]) -> Finding:
    """A finding with the disagreements of settings or words that say the same."""
    leads = [
        lead
        for rung in rungs
        for lead in rung.findings
        if not lead.confirmed and finding.confirmed and _same(lead, finding)
    ]
    if not leads:
        return finding
    more = f" and {len(leads) - 1} more" if len(leads) > 1 else ""
    return finding.model_copy(update={"evidence": f"{finding.evidence}; {leads[0].evidence}{more}"})


def _same(lead: Finding, finding: Finding) -> bool:
    if lead.cause == finding.cause:
        return True
    held = lead.parameter is None  # words of a tensor
    return held and lead.component == finding.component and bool(set(lead.layers) & set(finding.layers))


def sentence(findings: Sequence[Finding], rungs: Sequence[Rung], layers: int) -> str:
    """The verdict."""
    if not findings:
        return _nothing(rungs)
    first = findings[0]
    more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{_subject(first, layers)}: {_why(first)}{more}"


def _subject(finding: Finding, layers: int) -> str:
    if finding.component in OUTSIDE:
        return OUTSIDE[finding.component]
    if not finding.confirmed:
        return f"target and reference may compute {finding.component} differently"
    own = finding.layers
    if not own:
        where = ""
    elif len(own) == layers:
        where = " in all layers"
    else:
        where = f" in layer {own[0]}" if len(own) == 1 else f" in {len(own)} layers, {own[0]} the first"
    return f"{finding.component} is wrong{where}"


def _why(finding: Finding) -> str:
    cause = "no known cause explains it" if finding.cause == "unknown" else finding.cause
    if finding.parameter is None or finding.found is None:
        return cause
    name = "" if finding.parameter == finding.cause else f", {finding.parameter}"
    right = "" if finding.reference is None else f" in place of {_written(finding.reference)}"
    return f"{cause}{name} {_written(finding.found)}{right}"


def _written(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def _nothing(rungs: Sequence[Rung]) -> str:
    """The verdict where nothing is wrong: what agrees, and what is left to look at."""
    agree = [rung.name for rung in rungs if rung.state == "agrees" and rung.name != "reference"]
    places = [f"{rung.name} ({rung.said})" for rung in rungs if rung.state == "differs"]
    places += [rung.name for rung in rungs if rung.state == "not checked"]
    rest = f"; look at {', '.join(places)}" if places else ""
    return f"no divergence: {', '.join(agree)} agree{rest}"
