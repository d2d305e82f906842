"""Rung: did the engine end its texts where the reference would have?"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from aftershock.capture import Request
from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.rungs.sampling import Sampling


def stop_rung(
    requests: Sequence[Request], ends: Collection[int], declared: Sampling | None, settings: Mapping[str, Any]
) -> Rung:
    """Hold what was sampled against the reference's end tokens, `ends`; where all is well, hold what the engine says
    its own are against them too."""
    sampled = [request for request in requests if request.sampled]
    if not sampled or not ends:
        why = "the target samples nothing" if not sampled else "the reference has no token that ends a text"
        return Rung(name="stop", state="not checked", said=why)
    if declared is not None and declared.ignore_eos and not _own_stops(settings):
        return Rung(name="stop", state="not checked", said="the target was asked to go on past the end of a text")
    limit = None if declared is None else declared.max_new_tokens
    findings = tuple(_findings(sampled, ends, limit)) or tuple(_declared_findings(ends, settings))
    if findings:
        return Rung(name="stop", state="differs", said=findings[0].evidence, findings=findings)
    over = sum(request.sampled[-1] in ends for request in sampled)
    return Rung(
        name="stop", state="agrees", said=f"{over} of {len(sampled)} texts end with an end token, none too late"
    )


def _findings(sampled: Sequence[Request], ends: Collection[int], limit: int | None) -> Iterator[Finding]:
    late = next((one for one in sampled if any(token in ends for token in one.sampled[:-1])), None)
    if late is not None:
        place = next(place for place, token in enumerate(late.sampled) if token in ends)
        more = len(late.sampled) - place - 1
        yield Finding(
            component="stop",
            cause="stop_token_missing",
            evidence=f"request {late.id} goes on for {more} tokens after {late.sampled[place]}, which ends a text",
            parameter="end token",
            found="none",
            reference=late.sampled[place],
        )
    early = next((one for one in sampled if one.sampled[-1] not in ends and len(one.sampled) < (limit or 0)), None)
    if early is not None:
        yield Finding(
            component="stop",
            cause="stop_too_early",
            evidence=f"request {early.id} ends after {len(early.sampled)} of {limit} tokens, without an end token",
            parameter="end token",
            found=early.sampled[-1],
            reference=", ".join(map(str, sorted(ends))),
        )


def _declared_findings(ends: Collection[int], settings: Mapping[str, Any]) -> Iterator[Finding]:
    declared = declared_ends(settings)
    missing = sorted(set(ends) - declared)
    if declared and missing:
        yield Finding(
            component="stop",
            cause="stop_token_missing",
            evidence=f"the target says that {_listed(declared)} end a text, the reference {_listed(ends)}",
            parameter="end token",
            found="none",
            reference=missing[0],
            confirmed=False,
        )


def declared_ends(settings: Mapping[str, Any]) -> set[int]:
    """Every token id that an engine's settings name as ending a text."""
    places = (("special_tokens", "eos"), ("sampling", "eos_token_id"), ("sampling", "stop_token_ids"))
    found: set[int] = set()
    for section, key in places:
        content = settings.get(section)
        value = content.get(key) if isinstance(content, Mapping) else None
        values = value if isinstance(value, list | tuple) else [value]
        found |= {token for token in values if isinstance(token, int)}
    return found


def _own_stops(settings: Mapping[str, Any]) -> bool:
    """Whether the target was given stop tokens by name."""
    sampling = settings.get("sampling")
    return isinstance(sampling, Mapping) and bool(sampling.get("stop_token_ids"))


def _listed(ids: Collection[int]) -> str:
    return ", ".join(map(str, sorted(ids)))
