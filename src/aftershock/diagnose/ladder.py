"""The ladder: from the tokens that a target reads to the tokens that it samples, the cheapest comparisons first.

Where an early rung finds an error, the later ones go on with what the target had, so that a second, independent error
is found too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aftershock.capture import Bundle, Prompt, record
from aftershock.diagnose.alignment import Alignment
from aftershock.diagnose.architecture import architecture_of
from aftershock.diagnose.arithmetic import Arithmetic
from aftershock.diagnose.comparable import check_beside, check_comparable
from aftershock.diagnose.declared import arithmetic_of, at_most_single, cut_short, tokens_of
from aftershock.diagnose.diagnosis import Diagnosis, Rung
from aftershock.diagnose.explaining import explain
from aftershock.diagnose.judging import OVERALL
from aftershock.diagnose.prompts import check_order, expected
from aftershock.diagnose.replaying import Replayed, replayed
from aftershock.diagnose.replica import Replica
from aftershock.diagnose.rungs.model import (
    activations_rung,
    cache_rung,
    logits_rung,
    other_runs_rung,
    reference_rung,
    shortest,
)
from aftershock.diagnose.rungs.sampler import sampler_rung, steps_of
from aftershock.diagnose.rungs.sampling import Sampling, asked_sampling, sampling_of
from aftershock.diagnose.rungs.settings import settings_rung
from aftershock.diagnose.rungs.stop import stop_rung
from aftershock.diagnose.rungs.tokens import Special, positions_rung, tokens_rung
from aftershock.diagnose.rungs.weights import weights_rung
from aftershock.diagnose.summary import alignment_of, curve_of, picture_at_onset, subject_of
from aftershock.diagnose.unseen import unseen
from aftershock.diagnose.verdict import backed, findings_of, sentence
from aftershock.diagnose.weights import weights_of
from aftershock.models import LoadedModel, Progress, end_tokens, quiet


@dataclass(frozen=True, eq=False)
class Asked:
    """What is diagnosed: the reference, the target's bundle and, where known, the prompts as they were asked, and
    sources of points that need not be found."""

    reference: LoadedModel
    target: Bundle
    prompts: Sequence[Prompt] | None = None
    known: Alignment | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the target says of itself."""
        return self.target.manifest.settings

    @property
    def declared(self) -> Sampling | None:
        """The sampling that the target says it does."""
        return sampling_of(self.settings.get("sampling"))

    @property
    def wanted(self) -> Sampling:
        """The sampling that was asked for."""
        module: Any = self.reference.module
        own = sampling_of(module.generation_config.to_diff_dict())
        return asked_sampling(self.settings, own or Sampling())


def diagnose(
    reference: LoadedModel,
    target: Bundle,
    prompts: Sequence[Prompt] | None = None,
    beside: Sequence[Bundle] = (),
    known: Alignment | None = None,
    progress: Progress = quiet,
) -> Diagnosis:
    """Which component of a target is the first that is wrong, and why.

    `reference` is the same model in transformers, its weights rounded as the target has them; `target` what the engine
    computed; `prompts` what it was asked (without them, the texts that the bundle holds); `beside` further bundles of
    the same engine that ran otherwise, one by one or with cached prefixes for example. Sources that `known` names win
    over what alignment finds.

    Raises InputError for a family without a replica, prompts that are not the bundle's, tokens that the reference has
    not, and a target that shows nothing of the reference's model.
    """
    check_comparable(reference, target, prompts)
    for bundle in beside:
        check_beside(reference, target, bundle)
    target, *beside = map(at_most_single, (target, *beside))
    arithmetic = arithmetic_of(target.manifest)
    replica = Replica(architecture_of(reference), weights_of(reference), arithmetic)
    asked = Asked(reference, target, prompts, known)
    progress("comparing tokens, settings and weights")
    outside = tuple(_outside(asked, replica))
    progress("replaying the reference")
    understood = reference_rung(_of_reference(asked, replica))
    if understood.state == "differs":
        return _not_understood(asked, (*outside, understood))
    progress("replaying the target")
    tokens = tokens_of(target.manifest, reference.device)
    run = replayed(replica, tokens, target, known)
    progress("explaining")
    found = explain(replica, tokens, run.target, run.judgement)
    inside = (activations_rung(run, found), cache_rung(run, found), logits_rung(run, found))
    others = tuple(_of_others(asked, replica, run, beside))
    sampler = sampler_rung(steps_of(target), asked.wanted, asked.declared)
    rungs = (*outside, understood, *inside, *others, sampler)
    findings = tuple(backed(one, rungs) for one in findings_of(rungs))
    names = [request.id for request in target.manifest.requests]
    return Diagnosis(
        verdict=sentence(findings, rungs, len(replica.architecture.layers)),
        divergent=bool(findings),
        understood=True,
        subject=subject_of(asked.reference, asked.target),
        findings=findings,
        suspects=run.judgement.suspects,
        rungs=rungs,
        threshold=OVERALL,
        curve=tuple(curve_of(replica, run)),
        picture=picture_at_onset(run, names),
        alignment=alignment_of(run),
        unmatched=tuple(map(str, run.alignment.unmatched_values)),
        reproduce=shortest(run, names),
        invisible=(
            *cut_short([bundle.manifest for bundle in (target, *beside)]),
            *unseen(replica, tokens, run.target, run.deviations),
        ),
    )


def _outside(asked: Asked, replica: Replica) -> Iterator[Rung]:
    """The rungs that need no value of the model."""
    requests = asked.target.manifest.requests
    tokenizer = asked.reference.tokenizer
    prompts = [None] * len(requests) if asked.prompts is None else asked.prompts
    wanted = [expected(tokenizer, prompt, request) for prompt, request in zip(prompts, requests, strict=True)]
    if asked.prompts is not None:
        check_order(requests, wanted)
    special = Special(getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    config: Any = asked.reference.module.config
    yield tokens_rung(requests, wanted, special)
    yield positions_rung(requests)
    yield stop_rung(requests, end_tokens(asked.reference), asked.declared, asked.settings)
    yield settings_rung(asked.settings, config.to_dict(), asked.declared, asked.wanted)
    yield weights_rung(asked.target.manifest.weights, replica.weights)


def _of_reference(asked: Asked, replica: Replica) -> Replayed:
    """The reference's own values, replayed in its own arithmetic."""
    own = record(asked.reference, [request.tokens for request in asked.target.manifest.requests])
    at_home = replace(replica, arithmetic=Arithmetic(asked.reference.dtype))
    return replayed(at_home, tokens_of(own.manifest, asked.reference.device), own)


def _of_others(asked: Asked, replica: Replica, run: Replayed, beside: Sequence[Bundle]) -> Iterator[Rung]:
    """The rung of the target's other runs, where there are any."""
    if beside:
        tokens = [tokens_of(bundle.manifest, asked.reference.device) for bundle in beside]
        others = [replayed(replica, own, bundle, asked.known) for own, bundle in zip(tokens, beside, strict=True)]
        found = [explain(replica, one.tokens, one.target, one.judgement) for one in others]
        yield other_runs_rung(run, others, found)


def _not_understood(asked: Asked, rungs: tuple[Rung, ...]) -> Diagnosis:
    findings = findings_of(rungs)
    return Diagnosis(
        verdict=rungs[-1].said,
        divergent=bool(findings),
        understood=False,
        subject=subject_of(asked.reference, asked.target),
        findings=findings,
        suspects=(),
        rungs=rungs,
        threshold=OVERALL,
        curve=(),
        picture=None,
        alignment="nothing was aligned",
        unmatched=(),
        reproduce="",
        invisible=tuple(cut_short([asked.target.manifest])),
    )
