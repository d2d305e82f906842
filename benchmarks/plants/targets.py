"""What an engine is given and does: model, prompts, sampling, circumstances. Operations change one into another."""

from dataclasses import dataclass, field

import torch

from aftershock.models import LoadedModel

Message = dict[str, str]
"""`role` and `content` of a turn."""


@dataclass(frozen=True)
class Sampling:
    """What becomes of logits. Settings mean what transformers and vLLM mean by them; temperature 0 is greedy.

    `runner_up_every`: every so many tokens the second best is taken (0: never). `seed` sets the random draws apart.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    runner_up_every: int = 0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A suspect, or a clean engine. `prompts` are token ids; where they come from texts, `texts` has those, where from
    turns of a chat, `chats`. `together`: prompts of one length run in one pass."""

    model: LoadedModel
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...] = ()
    chats: tuple[tuple[Message, ...], ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    together: bool = False
    threads: int = 1

    @property
    def module(self) -> torch.nn.Module:
        """The model's module, which operations change in place."""
        return self.model.module
