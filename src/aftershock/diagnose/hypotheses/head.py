"""What can be wrong with the logits."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from aftershock.diagnose.hypotheses.changes import Change, with_bias, with_tensors_of, with_values
from aftershock.diagnose.hypotheses.fitting import number
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, numbers
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.weights import Part

KINDS = ("logits",)


def lm_head_tying(place: Place) -> Iterator[Candidate]:
    """The embedding's words where the head has its own."""
    head, embedding = (place.replica.weights[Part(kind, -1)] for kind in ("logits", "embedding"))
    if head.shape == embedding.shape and not torch.equal(head, embedding):
        tied = with_tensors_of("logits", lambda _: Part("embedding", -1))
        yield Candidate("lm_head_tying", tied, "head", "the embedding's words", "its own")


def logit_multiplier(place: Place) -> Iterator[Candidate]:
    """The logits times another factor, before they are capped."""
    own = place.replica.architecture.logit_multiplier

    def of(factor: float) -> Change:
        return lambda replica, _: _with(replica, logit_multiplier=factor)

    for found in number(place, "logit_multiplier", of, numbers(1 / 64, 64, 25), own):
        yield replace(found, parameter="factor")


def logit_softcap(place: Place) -> Iterator[Candidate]:
    """No cap, another one, or one where there is none."""
    own = place.replica.architecture.logit_softcap
    if own is not None:
        yield Candidate("logit_softcap", lambda replica, _: _uncapped(replica), "softcap", "none", own)

    def of(cap: float) -> Change:
        return lambda replica, _: _with(replica, logit_softcap=cap)

    for found in number(place, "logit_softcap", of, numbers(0.5, 2000, 37), own or "none"):
        yield replace(found, parameter="softcap")


def _with(replica: Replica, **numbers: float) -> Replica:
    return replace(replica, architecture=with_values(**numbers)(replica.architecture))


def _uncapped(replica: Replica) -> Replica:
    return replace(replica, architecture=replace(replica.architecture, logit_softcap=None))


def logit_bias(place: Place) -> Iterator[Candidate]:
    """A constant added to each logit: the mean of what is left over."""
    if place.direct and place.replica.architecture.logit_softcap is None:
        constant = (place.values - place.expected).mean(0) / place.replica.architecture.logit_multiplier
        touched = int((constant.abs() > 1e-2 * constant.abs().max()).sum())
        yield Candidate("logit_bias", with_bias("logits", constant), "logits with a bias", touched, 0)


HYPOTHESES = (
    Hypothesis(KINDS, "choice", lm_head_tying, same_for_all=True),
    Hypothesis(KINDS, "number", logit_multiplier),
    Hypothesis(KINDS, "number", logit_softcap),
    Hypothesis(KINDS, "structure", logit_bias),
)
"""What can be wrong with the logits."""
