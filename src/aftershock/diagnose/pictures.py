"""What a report draws of deviations: error ratios by range of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from aftershock.diagnose.diagnosis import Picture
from aftershock.diagnose.replay import Deviation

MOST_COLUMNS = 96
MOST_POINTS = 48


@dataclass(frozen=True)
class Span:
    """A range of tokens of one request: their numbers among all tokens, and the range as it is written."""

    first: int
    last: int
    name: str


def spans(names: Sequence[str], lengths: Sequence[int]) -> tuple[Span, ...]:
    """The tokens of all requests in at most about `MOST_COLUMNS` ranges, each of one request."""
    width = max(-(-sum(lengths) // MOST_COLUMNS), 1)
    return tuple(_spans(names, lengths, width))


def _spans(names: Sequence[str], lengths: Sequence[int], width: int) -> Iterator[Span]:
    start = 0
    for name, length in zip(names, lengths, strict=True):
        for first in range(0, length, width):
            last = min(first + width, length) - 1
            tokens = str(first) if first == last else f"{first}-{last}"
            yield Span(start + first, start + last, f"{name}: {tokens}")
        start += length


def picture_of(deviations: Sequence[Deviation], columns: Sequence[Span]) -> Picture | None:
    """Error ratios of the first `MOST_POINTS` deviations by range of tokens; None where there is none."""
    shown = deviations[:MOST_POINTS]
    if not shown:
        return None
    return Picture(
        points=tuple(str(one.point) for one in shown),
        columns=tuple(span.name for span in columns),
        ratios=tuple(tuple(ratio_in(one, span) for span in columns) for one in shown),
    )


def ratio_in(deviation: Deviation, span: Span) -> float | None:
    """The error ratio of the tokens in a range; None where the target shows none of them."""
    numbers = torch.arange(len(deviation.error)) if deviation.rows is None else deviation.rows.cpu()
    inside = ((numbers >= span.first) & (numbers <= span.last)).nonzero()[:, 0]
    return deviation.of(inside.to(deviation.error.device)).ratio if len(inside) else None
