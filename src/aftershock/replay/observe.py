"""What is kept of a teacher-forced run's logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from aftershock.models import Choices, choose
from aftershock.numerics import words
from aftershock.replay.batches import Batch
from aftershock.replay.distance import compared_positions


@dataclass(frozen=True)
class Asked:
    """What is looked at. Tensors are int64 where nothing else is said; `likely` lies on the model's device.

    `likely`, shape (sequences, positions): the tokens that are probably chosen; `inside`, bool, on the CPU: whether a
    sequence has that position. `scored`, shape (n, 4): number of the task's row, sequence, position and token of each
    log-probability asked for. `compared`, shape (m, 2): sequence and position of the logits that are kept; both are in
    the order of positions. `items`, shape (m,): numbers of the items that those belong to.
    """

    likely: torch.Tensor
    inside: torch.Tensor
    scored: torch.Tensor
    compared: torch.Tensor
    items: torch.Tensor

    @cached_property
    def wanted(self) -> torch.Tensor:
        """Whether the logits of a position are asked for, bool, of `likely`'s shape; on the CPU."""
        wanted = torch.zeros(self.likely.shape, dtype=torch.bool)
        wanted[self.compared[:, 0], self.compared[:, 1]] = True
        wanted[self.scored[:, 1], self.scored[:, 2]] = True
        return wanted

    @cached_property
    def by_row(self) -> torch.Tensor:
        """Order of `scored` that puts them row after row."""
        return self.scored[:, 0].argsort(stable=True)

    @cached_property
    def by_sequence(self) -> torch.Tensor:
        """Order of `compared` that puts them sequence after sequence; on the model's device."""
        return self.compared[:, 0].argsort(stable=True).to(self.likely.device)

    @cached_property
    def compared_lengths(self) -> list[int]:
        """How many of `compared` each sequence has."""
        lengths: list[int] = self.compared[:, 0].bincount(minlength=len(self.likely)).tolist()
        return lengths


def asked_of(batch: Batch, texts: Sequence[Sequence[int]], device: torch.device) -> Asked:
    """What a run over a batch is asked; `texts` are golden's, of a batch that generates."""
    if batch.generates:
        fed, scored = texts, []
    else:
        fed = [(*answer, answer[-1] if answer else 0) for _, answer in batch.sequences]
        numbered = zip(
            (row for rows in batch.rows for row in rows), (s for own in batch.sequence_of for s in own), strict=True
        )
        scored = [
            (number, sequence, position, token)
            for number, (row, sequence) in enumerate(numbered)
            for position, token in enumerate(row.continuation)
        ]
    longest = max(map(len, fed))
    compared = [(row, position) for row, tokens in enumerate(fed) for position in compared_positions(len(tokens))]
    places = torch.tensor(sorted(compared, key=lambda one: one[1]), dtype=torch.int64).view(-1, 2)
    item_of = torch.tensor([item for item, own in enumerate(batch.sequence_of) for _ in dict.fromkeys(own)])
    return Asked(
        torch.tensor([(*tokens, *(0,) * (longest - len(tokens))) for tokens in fed], device=device),
        torch.arange(longest) < torch.tensor([len(tokens) for tokens in fed])[:, None],
        torch.tensor(sorted(scored, key=lambda one: one[2]), dtype=torch.int64).view(-1, 4),
        places,
        item_of[places[:, 0]],
    )


@dataclass(frozen=True)
class Seen:
    """What was asked of some positions: the choices (CPU, shape (sequences, positions)), log-probabilities (CPU, fp32,
    shape (n,)) and logits (shape (m, vocabulary), model dtype)."""

    choices: Choices
    logprobs: torch.Tensor
    logits: torch.Tensor

    def by_itself(self) -> "Seen":
        """The same with logits of its own, which else hold those of the copies beside it in memory."""
        return replace(self, logits=self.logits.clone())

    def equal(self, other: "Seen") -> bool:
        """Whether both are the same to the bit."""
        fields = ("tokens", "finite", "best", "margins")
        pairs = ((self.logits, other.logits), (self.logprobs, other.logprobs))
        return all(torch.equal(words(one), words(two)) for one, two in pairs) and all(
            torch.equal(getattr(self.choices, name), getattr(other.choices, name)) for name in fields
        )


@torch.inference_mode()
def observe(logits: torch.Tensor, first: int, asked: Asked) -> list[Seen]:
    """What each copy of a batch shows; `logits`, shape (copies, sequences, positions, vocabulary), begin with position
    `first`."""
    copies, _, positions, _ = logits.shape
    likely = asked.likely[:, first : first + positions].expand(copies, -1, -1)
    choices = choose(logits, likely)
    scored = within(asked.scored, 2, first, positions).to(logits.device, non_blocking=True)
    logprobs = log_probabilities(logits[:, scored[:, 1], scored[:, 2] - first], scored[:, 3])
    compared = within(asked.compared, 1, first, positions).to(logits.device, non_blocking=True)
    kept = logits[:, compared[:, 0], compared[:, 1] - first]
    return [
        Seen(
            Choices(choices.tokens[copy], choices.finite[copy], choices.best[copy], choices.margins[copy]),
            logprobs[copy],
            kept[copy],
        )
        for copy in range(copies)
    ]


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Those of one token a position, fp32, on the CPU; `logits`, shape (copies, positions, vocabulary)."""
    found = logits.gather(-1, tokens.expand(len(logits), -1)[..., None])[..., 0].float()
    # In fp32, in parts of bounded size.
    found -= torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, 256, dim=1)], dim=1)
    return found.cpu()


def within(places: torch.Tensor, column: int, first: int, positions: int) -> torch.Tensor:
    """The places whose position lies in [first, first + positions)."""
    found = places[:, column]
    return places[(found >= first) & (found < first + positions)]


def joined(calls: Sequence[Seen]) -> Seen:
    """What the calls of a run showed, one after the other."""
    choices = [call.choices for call in calls]
    return Seen(
        Choices(
            torch.cat([one.tokens for one in choices], dim=1),
            torch.cat([one.finite for one in choices], dim=1),
            torch.cat([one.best for one in choices], dim=1),
            torch.cat([one.margins for one in choices], dim=1),
        ),
        torch.cat([call.logprobs for call in calls]),
        torch.cat([call.logits for call in calls]),
    )


def logits_of(seen: Seen, asked: Asked) -> tuple[torch.Tensor, ...]:
    """The kept logits of each sequence, shape (positions, vocabulary)."""
    return torch.split(seen.logits[asked.by_sequence], asked.compared_lengths)
