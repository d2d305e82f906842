"""Errors in how transformers' `generate` chooses among logits that are right."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.plants.places import Forward, wrap_generate


@dataclass(frozen=True)
class Chooser:
    """Changes scores, shape (rows, vocabulary), before a token is chosen. The first `prompt` tokens were not generated;
    the other fields are those of `Sampling`."""

    prompt: int
    presence_penalty: float
    runner_up_every: int

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores to choose from, after tokens of shape (rows, tokens)."""
        made = tokens[:, self.prompt :]
        changed = scores.scatter(1, made, scores.gather(1, made) - self.presence_penalty)
        if self.runner_up_every and (made.shape[1] + 1) % self.runner_up_every == 0:
            return changed.scatter(1, changed.argmax(1, keepdim=True), -torch.inf)
        return changed


def change_choice(model: Any, presence_penalty: float = 0.0, runner_up_every: int = 0) -> None:
    """`generate` chooses as these fields of `Sampling` say, without any setting that tells."""
    wrap_generate(model, partial(_around, presence_penalty=presence_penalty, runner_up_every=runner_up_every))


def _around(inner: Forward, presence_penalty: float, runner_up_every: int) -> Forward:
    def generate(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        chooser = Chooser(input_ids.shape[1], presence_penalty, runner_up_every)
        return inner(*args, input_ids=input_ids, logits_processor=[chooser], **kwargs)

    return generate
