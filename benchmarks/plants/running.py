"""Run a target in transformers: logits of its prompts, and the tokens that its sampling chooses.

Everything is computed anew for every token, without a cache: slow, and the same whatever was planted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from aftershock.numerics import generator
from benchmarks.plants.targets import Sampling, Target


@torch.inference_mode()
def logits_of(target: Target) -> list[torch.Tensor]:
    """Logits of every prompt's tokens, shape (tokens, vocabulary) each, in the model's dtype."""
    numbers = range(len(target.prompts))
    lengths = dict.fromkeys(map(len, target.prompts))
    groups = [[number for number in numbers if len(target.prompts[number]) == length] for length in lengths]
    found: dict[int, torch.Tensor] = {}
    with _threads(target.threads):
        for group in groups if target.together else [[number] for number in numbers]:
            ids = torch.tensor([target.prompts[number] for number in group])
            found |= zip(group, target.module(input_ids=ids, use_cache=False).logits, strict=True)
    return [found[number] for number in numbers]


@torch.inference_mode()
def generate(target: Target, new_tokens: int) -> list[tuple[int, ...]]:
    """The tokens that follow each prompt, at most so many, a stop token included."""
    return [_answer(target, prompt, new_tokens, index) for index, prompt in enumerate(target.prompts)]


def _answer(target: Target, prompt: Sequence[int], new_tokens: int, index: int) -> tuple[int, ...]:
    made: list[int] = []
    draws = generator(target.sampling.seed, index, "planted sampling").random(new_tokens)
    for step in range(new_tokens):
        logits = target.module(input_ids=torch.tensor([[*prompt, *made]]), use_cache=False).logits[0, -1].double()
        made.append(choose(logits, target.sampling, prompt, made, float(draws[step])))
        if made[-1] in target.sampling.stop_ids:
            break
    return tuple(made)


def choose(logits: torch.Tensor, sampling: Sampling, prompt: Sequence[int], made: Sequence[int], draw: float) -> int:
    """The next token after some logits, shape (vocabulary,); `draw` in [0, 1) decides where the choice is random."""
    scores = logits.clone()
    seen = torch.tensor(sorted({*prompt, *made}), dtype=torch.long)
    factor = sampling.repetition_penalty
    scores[seen] = torch.where(scores[seen] > 0, scores[seen] / factor, scores[seen] * factor)
    scores[torch.tensor(sorted({*made}), dtype=torch.long)] -= sampling.presence_penalty
    ranked = scores.argsort(descending=True)
    if sampling.temperature == 0:
        takes_second = sampling.runner_up_every > 0 and (len(made) + 1) % sampling.runner_up_every == 0
        return int(ranked[1 if takes_second else 0])
    ranked = ranked[: sampling.top_k or None]
    chances = (scores[ranked] / sampling.temperature).softmax(0)
    before = chances.cumsum(0) - chances
    kept = chances * (before < sampling.top_p)
    reached = (kept / kept.sum()).cumsum(0)
    return int(ranked[min(int((reached <= draw).sum()), len(ranked) - 1)])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
