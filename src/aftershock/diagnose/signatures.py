"""At which tokens and in which channels a point is wrong: the patterns that tell kinds of errors apart."""

from dataclasses import dataclass
from typing import Literal

import torch

from aftershock.diagnose.functions import Tokens
from aftershock.diagnose.replay import Deviation

TOUCHED = 1.5
"""A row or channel of a wrong point with a larger ratio may be wrong itself; few healthy ones have one."""

STRUCK = 4.0
"""One with a larger ratio is wrong; where all ratios are small, so is one of more than the root of the largest ones."""

MOST = 0.8
"""A pattern holds where at least so much of what it covers is wrong."""

ALL = 0.9
"""So many rows or channels are all of them: some are right by chance, or can't be wrong (position 0 is not turned)."""


@dataclass(frozen=True)
class Positions:
    """The tokens at which a point is wrong. `requests` are those that have any; `first` and `last` are positions."""

    pattern: Literal["all", "growing", "requests", "decode", "from", "block", "pass starts", "some"]
    requests: tuple[int, ...]
    first: int
    last: int
    count: int

    def __str__(self) -> str:
        match self.pattern:
            case "all":
                return "all tokens"
            case "growing":
                return "all tokens, the later the more"
            case "requests":
                return f"requests {_listed(self.requests)} alone"
            case "decode":
                return "tokens after the prompts alone"
            case "from":
                return f"from position {self.first} on"
            case "block":
                return f"positions {self.first} to {self.last} of request {_listed(self.requests)}"
            case "pass starts":
                return "the first tokens of passes"
        return f"{self.count} tokens of request{'s' if len(self.requests) > 1 else ''} {_listed(self.requests)}"


@dataclass(frozen=True)
class Channels:
    """The channels in which a point is wrong: `numbers` of heads or of channels."""

    pattern: Literal["all", "heads", "some"]
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        if self.pattern == "all":
            return "all channels"
        return f"{'heads' if self.pattern == 'heads' else 'channels'} {_listed(self.numbers)} alone"


def _listed(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return shown if len(numbers) <= 6 else f"{shown} and {len(numbers) - 6} more"


def touched(ratios: torch.Tensor) -> torch.Tensor:
    """Which rows, or channels, of a wrong point may be wrong: bool, of the same shape; at least one."""
    return (ratios > TOUCHED) | (ratios >= ratios.max())


def struck(ratios: torch.Tensor) -> torch.Tensor:
    """Which of them are wrong for sure: bool, of the same shape; at least one."""
    most = ratios.max()
    return touched(ratios) & ((ratios > most.sqrt().clamp(max=STRUCK)) | (ratios >= most))


def positions_of(deviation: Deviation, tokens: Tokens) -> Positions:
    """The pattern of the tokens at which a point is wrong."""
    ratios = deviation.ratios.cpu()
    own = torch.arange(len(tokens.ids)) if deviation.rows is None else deviation.rows.cpu()
    requests = torch.repeat_interleave(torch.arange(len(tokens.lengths)), torch.tensor(tokens.lengths))[own]
    positions = tokens.positions.cpu()[own]
    wrong, maybe = struck(ratios), touched(ratios)
    hit = tuple(sorted(set(requests[wrong].tolist())))
    first, last = int(positions[wrong].min()), int(positions[wrong].max())

    def named(
        pattern: Literal["all", "growing", "requests", "decode", "from", "block", "pass starts", "some"],
    ) -> Positions:
        return Positions(pattern, hit, first, last, int(wrong.sum()))

    def covers(expected: torch.Tensor) -> bool:
        """Whether the wrong rows are those expected."""
        inside = maybe[expected].double()
        return len(inside) > 0 and not bool((wrong & ~expected).any()) and float(inside.mean()) >= MOST

    if maybe.double().mean() >= ALL or covers(positions > 0):
        return named("growing" if _grows(ratios, positions) else "all")
    if tokens.prompts is not None and covers(_decoded(tokens)[own]):
        return named("decode")
    if covers(torch.isin(own, _pass_starts(tokens))):
        return named("pass starts")
    whole = torch.isin(requests, torch.tensor(hit))
    if len(hit) < len(tokens.lengths) and (covers(whole) or covers(whole & (positions > 0))):
        return named("requests")
    if covers(positions >= first):
        return named("from")
    if len(hit) == 1 and covers((requests == hit[0]) & (positions >= first) & (positions <= last)):
        return named("block")
    return named("some")


def _decoded(tokens: Tokens) -> torch.Tensor:
    """Whether each token comes after its prompt."""
    prompts = tokens.lengths if tokens.prompts is None else tokens.prompts
    return torch.cat([torch.arange(length) >= own for length, own in zip(tokens.lengths, prompts, strict=True)])


def _pass_starts(tokens: Tokens) -> torch.Tensor:
    """The first token of each request in each pass but its first."""
    found = [
        min(number for number in numbers if own.start <= number < own.stop)
        for numbers in tokens.passes
        for own in tokens.requests
        if any(own.start <= number < own.stop for number in numbers)
    ]
    begun = {own.start for own in tokens.requests}
    return torch.tensor([number for number in found if number not in begun], dtype=torch.int64)


def _grows(ratios: torch.Tensor, positions: torch.Tensor) -> bool:
    """Whether the last third of the positions deviates at least four times as much as the first third."""
    ends = torch.quantile(positions.double(), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    early, late = ratios[positions <= ends[0]], ratios[positions >= ends[1]]
    finite = bool(torch.isfinite(ratios).all())
    return finite and len(early) > 2 and float(late.median()) >= 4 * float(early.median())


def channels_of(deviation: Deviation, head: int | None) -> Channels:
    """The pattern of the channels in which a point is wrong; `head` is the number of channels of a head."""
    wrong = touched(deviation.channel_ratios.cpu())
    if wrong.double().mean() >= ALL:
        return Channels("all", ())
    if head is not None and len(wrong) % head == 0:
        heads = wrong.view(-1, head).double().mean(-1)
        if ((heads == 0) | (heads >= MOST)).all():
            numbers = tuple((heads > 0).nonzero()[:, 0].tolist())
            return Channels("all", ()) if len(numbers) == len(heads) else Channels("heads", numbers)
    return Channels("some", tuple(wrong.nonzero()[:, 0].tolist()))
