"""Golden runs: what trials start from, and how far their own rounding goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import log, sqrt

import torch

from aftershock.models import Block, Choices, Generated, Pass, States
from aftershock.replay.distance import Clean, clean, distances
from aftershock.replay.executor import Distance, Run
from aftershock.replay.head import Doubt
from aftershock.replay.observe import Asked, Seen

DEVIATIONS = 8.0
"""A margin within so many standard deviations of the rounding noise between the two paths is too close to call."""


@dataclass(frozen=True)
class Forced:
    """A teacher-forced run of a batch: what it showed, and its keys and values. Those of the layers before `first` are
    golden's, `states` need not have them."""

    seen: Seen
    states: States
    golden: States = ()
    first: int = 0

    def own_states(self, row: int) -> States:
        """Keys and values of a row in the layers that are not golden's, the lowest first; shape (layers, 2, heads,
        columns, channels)."""
        begins = accumulate([len(states) for states in self.states], initial=0)
        return tuple(
            states[max(0, self.first - begin) :, :, row]
            for begin, states in zip(begins, self.states, strict=False)
            if begin + len(states) > self.first
        )

    def prefix_states(self, row: int, columns: slice) -> States:
        """Keys and values of some columns of a row; copies, so that the rest is freed."""
        found, begin = [], 0
        for number, states in enumerate(self.states):
            shared = min(max(0, self.first - begin), len(states))
            begin += len(states)
            own = states[shared:, :, row, :, columns]
            found.append(torch.cat([self.golden[number][:shared, :, row, :, columns], own]) if shared else own.clone())
        return tuple(found)


@dataclass(frozen=True)
class Trajectory:
    """A golden teacher-forced run, call by call and layer by layer.

    `outputs[c][l]`, shape (sequences, columns, channels): the residual stream after layer l in call c; `tuples` tells
    whether layers return it as the first of a tuple. `seen[c]` is what call c showed, `hidden[c]` what its head was
    given, where that is kept.
    """

    outputs: tuple[tuple[torch.Tensor, ...], ...]
    tuples: bool
    seen: tuple[Seen, ...]
    states: States
    hidden: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        tensors = [
            *self.hidden,
            *self.states,
            *(seen.logits for seen in self.seen),
            *(one for call in self.outputs for one in call),
        ]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class GoldenRun:
    """A fault-free run and what trials need of it.

    `block` are the rows of every teacher-forced run, `calls` its forward calls, cut before `boundaries` and where they
    grow long, `asked` what is looked at in them and `compared` the logits kept. Of a batch that generates, `written`
    are the answers, `choices` what the teacher-forced run chooses in their place, and `noise` is how far the margins of
    the two paths lie apart at most. An executor that starts trials in the middle keeps the `trajectory`, and one that
    spares the head where no choice is in doubt the `doubt`.
    """

    run: Run
    block: Block
    calls: tuple[Pass, ...]
    asked: Asked
    choices: Choices
    compared: torch.Tensor
    trajectory: Trajectory | None
    written: Generated
    boundaries: frozenset[int]
    noise: float = 0.0
    doubt: Doubt | None = None

    @cached_property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Each answer with the token that ended it."""
        return self.written.texts

    @property
    def precise(self) -> bool:
        """Whether the model's dtype is so fine that close choices are few, and are decoded."""
        return torch.finfo(self.compared.dtype).eps < 1e-6

    @property
    def close(self) -> float:
        """Margins below it are too close to call, as far as golden's rounding goes. The largest of n normal deviations
        is about sqrt(2 ln n) standard deviations."""
        return DEVIATIONS * self.noise / sqrt(2 * log(1 + sum(map(len, self.texts))))

    @cached_property
    def clean(self) -> Clean:
        """The compared logits, made ready."""
        return clean(self.compared, self.asked.items, self.block.rows // len(self.asked.likely))

    def apart(self, logits: torch.Tensor) -> tuple[Distance, ...]:
        """How far the compared logits of one run lie from golden's, item by item."""
        return distances(self.clean, [logits] * self.clean.copies)[0]

    @cached_property
    def text_tokens(self) -> torch.Tensor:
        """`texts` as int64, shape (rows, positions); zeros follow their ends."""
        width = self.choices.tokens.shape[1]
        return torch.tensor([(*text, *(0,) * (width - len(text))) for text in self.texts])

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        # Twice in the model's dtype, and once in fp32.
        kept = 2 * self.compared.nbytes + 4 * self.compared.numel()
        return kept + (0 if self.trajectory is None else self.trajectory.nbytes)


def band_of(golden: GoldenRun, logits: torch.Tensor) -> float:
    """Margins below it could be decided by rounding alone. A faulty residual stream, and its rounding with it, can
    be far larger than golden's: the band grows with the compared logits."""
    if not golden.precise:
        return 0.0
    return least_band(golden) * max(1.0, _largest(logits) / max(_largest(golden.compared), 1e-30))


def least_band(golden: GoldenRun) -> float:
    """The band of a trial whose logits are no larger than golden's."""
    if not golden.precise:
        return 0.0
    return max(
        golden.close, DEVIATIONS * torch.finfo(golden.compared.dtype).eps * float(golden.choices.best.abs().max())
    )


def margins_apart(
    margins: torch.Tensor, text: Sequence[int], others: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """How far the margins of a text lie from those of another run's tokens, each at least so long; margins of different
    winners lie on two sides of zero."""
    same = tokens[: len(text)] == torch.tensor(text)
    return (margins - torch.where(same, 1, -1) * others[: len(text)]).abs()


@torch.inference_mode()
def _largest(logits: torch.Tensor) -> float:
    """The largest magnitude."""
    low, high = logits.aminmax()
    return max(-float(low), float(high))
