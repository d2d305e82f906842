"""One bundle through the replay: aligned, compared point by point, judged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from aftershock.capture import Bundle
from aftershock.diagnose.alignment import Alignment, align
from aftershock.diagnose.architecture import architecture_of
from aftershock.diagnose.declared import arithmetic_of, at_most_single, tokens_of
from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.judging import Judgement, judge
from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import LOGITS, Deviation, Target, deviations
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.weights import weights_of
from aftershock.errors import InputError
from aftershock.models import LoadedModel

STREAM = frozenset({"embedding", "attn_norm", "attn_residual", "mlp_norm", "residual", "final_norm"})
"""Kinds that are as wide as the model. A target of the same model shows one of them that is right, at least."""


MOST = 2**25
"""Logits that are compared at most: rows times vocabulary."""

RIGHT = ("value", "user")
"""Evidence of a point that is known to be where it is."""


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a forced replay of a bundle showed."""

    tokens: Tokens
    alignment: Alignment
    target: Target
    deviations: Sequence[Deviation]
    judgement: Judgement


def replayed(replica: Replica, tokens: Tokens, bundle: Bundle, known: Alignment | None = None) -> Replayed:
    """Align a bundle with a replica in its arithmetic and compare every point that it shows. Sources that `known` names
    win over those that are found.

    Raises InputError where nothing in the bundle has the shape of what the reference computes, and for sources of
    `known` that are not the bundle's, or not as wide as their points.
    """
    if known is not None:
        known.check(bundle, _widths(replica, tokens))
    found = aligned(replica, tokens, bundle)
    alignment = found if known is None else found.overridden(known)
    target = thinned(alignment.target(bundle))
    if not _is_followed(alignment):
        raise InputError(
            f"no value of the target ({bundle.manifest.model}) is one that the reference computes: give a target with "
            "the reference's weights, or record more of its modules"
        )
    compared = deviations(replica, tokens, target)
    return Replayed(tokens, alignment, target, compared, judge(compared, replica, tokens, target))


def thinned(target: Target) -> Target:
    """The same with the logits of fewer tokens, evenly spread, where all of them are more than `MOST` values."""
    logits = target.get(LOGITS)
    if logits is None or logits.values.numel() <= MOST:
        return target
    count = len(logits.values)
    kept = torch.linspace(0, count - 1, max(MOST // logits.values.shape[-1], 1)).round().long()
    return {**target, LOGITS: logits.at(kept)}


def alignment_with(reference: LoadedModel, target: Bundle, known: Alignment | None = None) -> Alignment:
    """Which of a target's values are which points of the reference's decoder; sources that `known` names win.

    Raises InputError for a family without a replica, and for sources of `known` that don't fit.
    """
    replica = Replica(architecture_of(reference), weights_of(reference), arithmetic_of(target.manifest))
    target = at_most_single(target)
    tokens = tokens_of(target.manifest, reference.device)
    if known is not None:
        known.check(target, _widths(replica, tokens))
    found = aligned(replica, tokens, target)
    return found if known is None else found.overridden(known)


def aligned(replica: Replica, tokens: Tokens, bundle: Bundle) -> Alignment:
    """Which of a bundle's values are which points: as near as the target's arithmetic has them, or, where that leads
    nowhere, as near as bf16 has them, for targets whose words were rounded to it."""
    found = align(replica, tokens, bundle)
    if _is_followed(found):
        return found
    coarse = replace(replica, arithmetic=replace(replica.arithmetic, dtype=torch.bfloat16))
    again = align(coarse, tokens, bundle)
    return again if _is_followed(again) else found


def _is_followed(alignment: Alignment) -> bool:
    """Whether the residual stream was found anywhere by its values."""
    return any(own.evidence in RIGHT and point.kind in STREAM for point, own in alignment.matches.items())


def _widths(replica: Replica, tokens: Tokens) -> dict[Point, int]:
    """How many channels the points of a replica have, by a run of one token."""
    one = Tokens(tokens.ids[:1], tokens.positions[:1], lengths=(1,))
    return {point: values.shape[-1] for point, values in replica.walk(one, lambda _, values: values)}
