"""Rung: do the sampled tokens follow from the logits?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binom, chi2

from aftershock.capture import Bundle
from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.rungs.sampling import Sampling

ALPHA = 1e-3
"""Chance at which a draw is held to be none of the distribution that was declared."""

LIKELY = 0.05
"""Chance below which second places are no coincidence."""

TEMPERATURES = (0.02, 20.0)
"""Ends of the range in which a temperature is looked for."""


HOT = 0.9 * TEMPERATURES[1]
"""A temperature from which on it is none that was found."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Every sampled token with the logits it was taken from, fp64, shape (steps, vocabulary); `tie` is the difference
    below which two logits of a step are the same, shape (steps,). `counts` says how often each token was sampled before
    in the same text, `seen` whether it was in prompt or text: int64 and bool, shape (steps, vocabulary)."""

    logits: torch.Tensor
    taken: torch.Tensor
    tie: torch.Tensor
    counts: torch.Tensor
    seen: torch.Tensor
    names: tuple[str, ...]


def steps_of(bundle: Bundle) -> Steps | None:
    """The steps whose logits a bundle has; None where it has none."""
    if bundle.logits is None or bundle.manifest.logits is None:
        return None
    rows = {number: row for row, number in enumerate(bundle.manifest.tokens_of(bundle.manifest.logits.span))}
    kept: list[tuple[int, int, str]] = []
    counts, seen = [], []
    vocabulary = bundle.logits.shape[-1]
    for start, request in zip(bundle.manifest.starts, bundle.manifest.requests, strict=True):
        prompt = len(request.tokens) if request.prompt_tokens is None else request.prompt_tokens
        known = torch.bincount(torch.tensor(request.tokens[:prompt]), minlength=vocabulary) > 0
        count = torch.zeros(vocabulary, dtype=torch.int64)
        for step, token in enumerate(request.sampled):
            row = rows.get(start + prompt - 1 + step)
            if row is not None:
                kept.append((row, token, f"token {step} of request {request.id}"))
                counts.append(count.clone())
                seen.append(known | (count > 0))
            count[token] += 1
    if not kept:
        return None
    logits = bundle.logits[[row for row, _, __ in kept]]
    tie = torch.finfo(logits.dtype).eps * logits.double().abs().amax(-1)
    taken = torch.tensor([token for _, token, __ in kept])
    names = tuple(name for *_, name in kept)
    return Steps(logits.double(), taken, tie, torch.stack(counts), torch.stack(seen), names)


def penalised(steps: Steps, sampling: Sampling) -> torch.Tensor:
    """The logits after penalties: divided (negative ones multiplied) by the repetition penalty for tokens seen (CTRL,
    arXiv 1909.05858), less the presence penalty for tokens sampled before, less the frequency penalty for each time."""
    factor = torch.where(steps.logits > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
    scores = torch.where(steps.seen, steps.logits * factor, steps.logits)
    less = sampling.presence_penalty * (steps.counts > 0) + sampling.frequency_penalty * steps.counts
    return scores - less


def follows(steps: Steps, sampling: Sampling) -> torch.Tensor:
    """Whether each token can come from its logits under a sampling: bool, shape (steps,)."""
    scores = penalised(steps, sampling)
    own = scores.gather(-1, steps.taken[:, None])[:, 0]
    if sampling.greedy:
        return scores.amax(-1) - own <= steps.tie
    kept: torch.Tensor = _kept(scores, sampling, steps.tie).gather(-1, steps.taken[:, None])[:, 0]
    return kept


def _kept(scores: torch.Tensor, sampling: Sampling, tie: torch.Tensor) -> torch.Tensor:
    """Which tokens `top_k` and `top_p` leave, ties with the last one included: bool, shape (steps, vocabulary)."""
    ordered, order = scores.sort(-1, descending=True)
    # A token stays while fewer than top_k, and less than top_p, lie clearly above it.
    kept = torch.ones_like(scores, dtype=torch.bool)
    if sampling.top_k:
        last = ordered[:, min(sampling.top_k, ordered.shape[-1]) - 1]
        kept &= scores >= (last - tie)[:, None]
    if sampling.top_p < 1:
        shares = torch.softmax(ordered / sampling.temperature, -1)
        above = torch.zeros_like(scores).scatter(-1, order, shares.cumsum(-1) - shares)
        kept &= above <= sampling.top_p + 1e-3
    return kept


def sampler_rung(steps: Steps | None, asked: Sampling, declared: Sampling | None) -> Rung:
    """Compare with the sampling that was asked for; where that fails, with what the engine says, and with penalties and
    temperatures that would explain it."""
    if steps is None:
        return Rung(name="sampler", state="not checked", said="no sampled token has its logits in the bundle")
    own = follows(steps, asked)
    count = len(own)
    if own.all() and (asked.greedy or _drawn(steps, asked)):
        return Rung(name="sampler", state="agrees", said=f"{count} sampled tokens follow from their logits")
    finding = next(_explanations(steps, asked, declared, own))
    wrong = int((~own).sum())
    said = f"{wrong} of {count} sampled tokens don't follow from their logits" if wrong else finding.evidence
    return Rung(name="sampler", state="differs", said=said, findings=(finding,))


def _explanations(steps: Steps, asked: Sampling, declared: Sampling | None, own: torch.Tensor) -> Iterator[Finding]:
    """What explains the tokens, the simplest first."""
    wrong = int((~own).sum())
    first = steps.names[int((~own).nonzero()[0])] if wrong else steps.names[0]
    told = f"{wrong} of {len(own)} tokens don't follow from their logits, {first} the first"
    if declared is not None and declared != asked and follows(steps, declared).all():
        for name in ("repetition_penalty", "presence_penalty", "temperature", "top_k", "top_p"):
            found, reference = getattr(declared, name), getattr(asked, name)
            if found != reference:
                yield _finding(name, f"{told}; the target's own settings explain them", found, reference)
    if asked.greedy:
        for name in ("repetition_penalty", "presence_penalty"):
            found = _penalty(steps, asked, name)
            if found is not None:
                yield _finding(name, f"{told}; a {name.replace('_', ' ')} explains all", found, getattr(asked, name))
    elif wrong:
        wide = asked.model_copy(update={"top_k": 0})
        name = "top_k" if asked.top_k and follows(steps, wide).all() else "top_p"
        yield _finding(name, f"{told}: they lie outside of what {name} leaves", None, getattr(asked, name))
    temperature = likeliest_temperature(steps, asked)
    warm = asked.model_copy(update={"temperature": temperature})
    # At the upper end of the range anything is as likely as anything else.
    if temperature < HOT and _drawn(steps, warm) and not _seconds(steps, temperature):
        yield _finding("temperature", f"{told}; they are drawn", round(temperature, 2), asked.temperature)
    yield _finding("not_the_argmax", told, None, None)


def _finding(cause: str, evidence: str, found: float | None, reference: float | None) -> Finding:
    parameter = None if found is None and reference is None else cause
    return Finding(
        component="sampler", cause=cause, evidence=evidence, parameter=parameter, found=found, reference=reference
    )


def _penalty(steps: Steps, asked: Sampling, name: str) -> float | None:
    """The middle of the values of a penalty, in hundredths, that explain all tokens; None where none does."""
    span: Sequence[int] = range(80, 301) if name == "repetition_penalty" else range(-200, 201, 5)
    fitting = [value / 100 for value in span if follows(steps, asked.model_copy(update={name: value / 100})).all()]
    return fitting[len(fitting) // 2] if fitting else None


def chances(steps: Steps, sampling: Sampling) -> torch.Tensor:
    """The logarithm of each token's chance to be drawn, fp64, shape (steps, vocabulary)."""
    scores = penalised(steps, sampling)
    kept = _kept(scores, sampling, steps.tie)
    return torch.log_softmax(scores.masked_fill(~kept, -torch.inf) / sampling.temperature, -1)


def likelihood(steps: Steps, sampling: Sampling) -> float:
    """Log-likelihood of the tokens that were taken."""
    return float(chances(steps, sampling).gather(-1, steps.taken[:, None]).sum())


def likeliest_temperature(steps: Steps, sampling: Sampling) -> float:
    """The temperature at which the tokens are most likely."""
    low, high = (math.log(end) for end in TEMPERATURES)
    found = minimize_scalar(
        lambda logarithm: -likelihood(steps, sampling.model_copy(update={"temperature": math.exp(logarithm)})),
        bounds=(low, high),
        method="bounded",
    )
    return math.exp(float(found.x))


def _drawn(steps: Steps, sampling: Sampling) -> bool:
    """Whether tokens may be draws at a temperature: no other makes them significantly more likely (a likelihood ratio
    test), and the most likely token was taken about as often as it should be."""
    best = sampling.model_copy(update={"temperature": likeliest_temperature(steps, sampling)})
    gain = 2 * (likelihood(steps, best) - likelihood(steps, sampling))
    top = chances(steps, sampling).amax(-1).exp()
    taken = int(follows(steps, sampling.model_copy(update={"temperature": 0.0})).sum())
    count, chance = len(top), float(top.mean())
    tail = min(binom.cdf(taken, count, chance), binom.sf(taken - 1, count, chance))
    return bool(chi2.sf(max(gain, 0.0), 1) > ALPHA and tail > ALPHA)


def _seconds(steps: Steps, temperature: float) -> bool:
    """Whether every token that is not the most likely is the second, more often than draws at a temperature give."""
    own = steps.logits.gather(-1, steps.taken[:, None])
    ranks = (steps.logits > own + steps.tie[:, None]).sum(-1)
    top = torch.softmax(steps.logits / temperature, -1).topk(2, -1).values
    chance = (top[:, 1] / (1 - top[:, 0]))[ranks > 0].prod()
    return bool((ranks <= 1).all()) and float(chance) < LIKELY
