"""Rung: did the engine read the tokens, at the positions, that the reference would have?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from aftershock.capture import Request
from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.prompts import Expected

SHOWN = 8
"""Most token ids that a sentence quotes."""

LEAST_CUT = 3
"""More tokens than that, gone from the middle in one piece, were cut out."""


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that begin and end a text, None where the model has none."""

    bos: int | None
    eos: int | None


def tokens_rung(requests: Sequence[Request], wanted: Sequence[Expected | None], special: Special) -> Rung:
    """Compare the ids of every request's prompt with those expected."""
    pairs = [(request, own) for request, own in zip(requests, wanted, strict=True) if own is not None]
    if not pairs:
        why = "neither prompts nor the text that the tokens were made from are known: give --prompts"
        return Rung(name="tokens", state="not checked", said=why)
    wrong = [(request, own) for request, own in pairs if prompt_ids(request) != own.ids]
    if not wrong:
        return Rung(name="tokens", state="agrees", said=f"the ids of {len(pairs)} prompts are the reference's")
    causes: dict[str, tuple[Request, Expected]] = {}
    for request, own in wrong:
        causes.setdefault(token_cause(prompt_ids(request), own, special, request.text), (request, own))
    findings = tuple(
        Finding(component="tokens", cause=cause, evidence=_evidence(request, own))
        for cause, (request, own) in causes.items()
    )
    said = f"the ids of {len(wrong)} of {len(pairs)} prompts are not the reference's: {', '.join(causes)}"
    return Rung(name="tokens", state="differs", said=said, findings=findings)


def prompt_ids(request: Request) -> tuple[int, ...]:
    """The ids of a request's prompt."""
    return request.tokens[: request.prompt_tokens]


def token_cause(found: tuple[int, ...], own: Expected, special: Special, text: str | None) -> str:
    """Why ids that were found are not those expected; `text` is what they were made from, if the target tells."""
    wanted, bos = own.ids, (special.bos,)
    # Whatever else is wrong: what a text begins with shifts all the rest.
    if special.bos is not None and found[:2] == bos * 2 != wanted[:2]:
        return "double_bos"
    if special.bos is not None and wanted[:1] == bos and found[:SHOWN] == wanted[1 : SHOWN + 1]:
        return "missing_bos"
    if special.eos is not None and (*found, special.eos) == wanted:
        return "missing_eos"
    if own.plain is not None and own.plain != wanted and found == own.plain:
        return "generation_prompt"
    told = text is not None and own.text is not None
    if told and text != own.text:
        return "template"
    missing, added = _changes(wanted, found)
    if not added and len(missing) == 1 and _cut(missing[0], len(wanted)):
        return "truncated_prompt"
    if told:
        return "tokenizer"
    # A template puts text around what is asked and leaves that as it is.
    around = bool(added) and not missing and len(added) <= 2
    return "template" if around or own.plain is not None else "tokenizer"


def _cut(missing: slice, length: int) -> bool:
    """Whether a stretch is what a limit of the length leaves out: an end, or more than a slip in the middle."""
    first, last = int(missing.start), int(missing.stop)
    return first <= 1 or last == length or last - first > LEAST_CUT


def _changes(wanted: Sequence[int], found: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """Stretches of `wanted` that were not found, and of `found` that were not wanted."""
    codes = SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes()
    missing = [slice(start, end) for tag, start, end, *_ in codes if tag in ("delete", "replace")]
    added = [slice(start, end) for tag, _, __, start, end in codes if tag in ("insert", "replace")]
    return missing, added


def _evidence(request: Request, own: Expected) -> str:
    found = prompt_ids(request)
    missing, added = _changes(own.ids, found)
    parts = [f"{_shown(own.ids[part])} missing at {part.start}" for part in missing[:2]]
    parts += [f"{_shown(found[part])} added at {part.start}" for part in added[:2]]
    more = len(missing) + len(added) - len(parts)
    return (
        f"request {request.id} has {len(found)} tokens, the reference {len(own.ids)}: {', '.join(parts)}"
        f"{f' and {more} more changes' if more else ''}"
    )


def _shown(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{', '.join(map(str, ids[:SHOWN]))}{more}"


def positions_rung(requests: Sequence[Request]) -> Rung:
    """Compare the positions that the engine says its tokens have with 0, 1, 2, ..."""
    wrong = [request for request in requests if request.positions != tuple(range(len(request.tokens)))]
    if not wrong:
        return Rung(name="positions", state="agrees", said="every request's positions count from 0")
    findings = tuple(_position_findings(wrong))
    said = f"the positions of {len(wrong)} of {len(requests)} requests do not count from 0 by one"
    return Rung(name="positions", state="differs", said=said, findings=findings)


def _position_findings(wrong: Sequence[Request]) -> Iterator[Finding]:
    first = wrong[0]
    offsets = [position - index for index, position in enumerate(first.positions)]
    at = next(index for index, offset in enumerate(offsets) if offset)
    shifted = at == 0 and len(set(offsets)) == 1
    yield Finding(
        component="q_rope",
        cause="position_offset" if shifted or offsets[at] > 0 else "position_reset",
        evidence=f"token {at} of request {first.id} has position {first.positions[at]}",
        parameter="offset" if shifted else None,
        found=offsets[at] if shifted else None,
        reference=0 if shifted else None,
        confirmed=False,
    )
