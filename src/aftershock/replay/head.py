"""The head over the vocabulary, which a trial needs only where it is asked for logits or a choice is in doubt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from aftershock.models import Choices, LoadedModel, choose
from aftershock.numerics import words
from aftershock.replay.observe import Asked, Seen, log_probabilities, within


@dataclass(frozen=True)
class Doubt:
    """What is known of golden's choices, to tell which choices of a trial can't be others.

    Of each call, `hidden` (sequences, positions, channels) are the head's inputs. `choices` are golden's of the whole
    run; `distances[r, j]`, of their shape, is the largest distance from the chosen token's row of the head to another
    one, `longest` the norm of the longest row. A margin of more than `least` is beyond doubt. `rounding` is the unit
    roundoff of the model's dtype.
    """

    hidden: tuple[torch.Tensor, ...]
    choices: Choices
    distances: torch.Tensor
    longest: float
    least: float
    rounding: float

    def known(self, call: int, first: int, hidden: torch.Tensor) -> Choices:
        """Golden's choices with lower bounds of their margins and upper bounds of their logits where a trial gives the
        head `hidden`; NaN where nothing is known. `first` is the call's first position.

        The logits of tokens t and b move apart by (w_t - w_b)(h - h_golden), which is no more than the product of the
        norms. On top comes the rounding of both heads' products, n u |w| |h| each (Higham, Accuracy and Stability of
        Numerical Algorithms, section 3.1), and of the logits to the model's dtype.
        """
        golden = self.hidden[call].float()
        places = slice(first, first + hidden.shape[1])
        apart = (hidden.float() - golden).norm(dim=-1).cpu()
        products = 4 * hidden.shape[-1] * _UNIT * self.longest * (golden.norm(dim=-1).cpu() + apart)
        best = (1 + 4 * self.rounding) * (self.choices.best[:, places].abs() + apart * self.longest + products)
        # Norms are rounded too.
        moved = 1.001 * (apart * self.distances[:, places] + products + 4 * self.rounding * best)
        tokens, margins = self.choices.tokens[:, places], self.choices.margins[:, places]
        return Choices(tokens, torch.ones_like(tokens, dtype=torch.bool), best, margins - moved)


_UNIT = torch.finfo(torch.float32).eps / 2
"""Unit roundoff of fp32, in which kernels add up whatever the dtype."""


def head_of(model: LoadedModel) -> torch.nn.Linear:
    """The module that gives the logits."""
    module: Any = model.module
    head: torch.nn.Linear = module.get_output_embeddings()
    return head


@torch.inference_mode()
def doubt_of(model: LoadedModel, hidden: tuple[torch.Tensor, ...], choices: Choices, least: float) -> Doubt:
    """What golden's run over a batch tells; `hidden` are the head's inputs, call by call."""
    rows = head_of(model).weight
    tokens, place = torch.unique(choices.tokens, return_inverse=True)
    chosen = rows[tokens.to(rows.device)].float()
    squares, longest = torch.zeros(len(chosen), device=rows.device), 0.0
    # In parts of bounded size.
    for part in torch.split(rows, 4096):
        others = part.float()
        lengths = others.square().sum(1)
        squares = squares.maximum((lengths - 2 * chosen @ others.T).amax(1) + chosen.square().sum(1))
        longest = max(longest, float(lengths.max().sqrt()))
    return Doubt(hidden, choices, squares.sqrt().cpu()[place], longest, least, torch.finfo(model.dtype).eps / 2)


@torch.inference_mode()
def gives_logits(model: LoadedModel) -> bool:
    """Whether the logits are the head's outputs as they are; some models scale or cap them."""
    outputs: list[torch.Tensor] = []
    hook = head_of(model).register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        logits = model.module(input_ids=torch.tensor([[0]], device=model.device), use_cache=False).logits
    finally:
        hook.remove()
    return torch.equal(words(logits), words(outputs[0]))


@contextmanager
def head_in_parts(head: torch.nn.Module, rows: int | None) -> Iterator[None]:
    """Inside, the head takes so many positions at a time, so that a position's bits don't depend on how many there are;
    all at once where no number is given."""
    if rows is None:
        yield
        return
    plain = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        filled = torch.cat([flat, flat[-1:].expand(-len(flat) % rows, -1)])
        logits = torch.cat([plain(part) for part in torch.split(filled, rows)])[: len(flat)]
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    with replaced_forward(head, forward):
        yield


@contextmanager
def withheld(head: torch.nn.Module, inputs: list[torch.Tensor]) -> Iterator[None]:
    """Inside, the head does nothing but put its inputs aside."""

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        inputs.append(hidden)
        return hidden[..., :1]

    with replaced_forward(head, forward):
        yield


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Any) -> Iterator[None]:
    """Inside, a module runs `forward`; afterwards what it ran before."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def unasked(hidden: torch.Tensor) -> Choices:
    """What stands for the choices at positions of `hidden`, shape (sequences, positions, channels), that nobody needs;
    none of them is in doubt."""
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64)
    nothing = torch.zeros(tokens.shape)
    return Choices(tokens, torch.ones_like(tokens, dtype=torch.bool), nothing, nothing + torch.inf)


@torch.inference_mode()
def observe_wanted(
    model: LoadedModel, known: Choices, least: float, first: int, hidden: torch.Tensor, asked: Asked, rows: int | None
) -> Seen:
    """What one call of a trial shows: the head runs where logits are asked for, or where a choice is in doubt, its
    margin being no more than `least`; the other choices are as `known`.

    `hidden`, shape (sequences, positions, channels), are the head's inputs of the call, whose first position is
    `first`; it takes `rows` of them at a time.
    """
    positions = hidden.shape[1]
    places = slice(first, first + positions)
    wanted = asked.wanted[:, places] | asked.inside[:, places] & ~(known.margins > least)
    number = (wanted.flatten().cumsum(0) - 1).view(wanted.shape)
    where = wanted.to(hidden.device)
    head = head_of(model)
    with head_in_parts(head, rows):
        logits = head(hidden[where])
    found = choose(logits, asked.likely[:, places][where])
    choices = Choices(*(field.clone() for field in (known.tokens, known.finite, known.best, known.margins)))
    choices.tokens[wanted], choices.finite[wanted] = found.tokens, found.finite
    choices.best[wanted], choices.margins[wanted] = found.best, found.margins
    scored, compared = within(asked.scored, 2, first, positions), within(asked.compared, 1, first, positions)
    asked_for = logits[number[scored[:, 1], scored[:, 2] - first].to(hidden.device)][None]
    (logprobs,) = log_probabilities(asked_for, scored[:, 3].to(hidden.device))
    return Seen(choices, logprobs, logits[number[compared[:, 0], compared[:, 1] - first].to(hidden.device)])
