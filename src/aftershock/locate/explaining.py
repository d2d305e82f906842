"""Which stored word explains a deviation of one module's output, its input being clean.

One changed word w[r, c] of a linear map shifts its output r at token t by d * x[t, c], the same d for all tokens. The
shift is known up to rounding, so every token bounds d from both sides, and column c is possible where all bounds meet.
A column is named where it is the only one; that the others don't explain the deviation is then proved, not estimated.
"""

import math
from dataclasses import dataclass

import torch

from aftershock.capture import Parameter, Record
from aftershock.numerics import words

_ROWS = 64
"""Rows, or words of a table, that are explained one by one at most."""

_TOKENS = 256
"""Tokens that bound a change at most: those with the largest deviations."""

_OF_NORM = 0.02
"""Relative error of a normalised input that is worked out without the norm's epsilon."""


@dataclass(frozen=True)
class Element:
    """A stored word that explains what deviates, by its index in the stored tensor, and bounds of the change of its
    value, None where they are not known."""

    tensor: str
    index: tuple[int, ...]
    change: tuple[float, float] | None


@dataclass(frozen=True)
class Explanation:
    """Tensors one of which is changed, output channels that deviate, and the words that are proved to explain them."""

    tensors: tuple[str, ...]
    channels: tuple[int, ...]
    elements: tuple[Element, ...]


@dataclass(frozen=True)
class _Deviation:
    """What one output channel shows: bounds of its shift, float64 of shape (tokens,), infinite where it shows none, at
    the tokens `chosen`."""

    low: torch.Tensor
    high: torch.Tensor
    chosen: torch.Tensor

    def changes(self, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of the change that, times each column of `factors`, shape (all tokens, columns), explains the shift at
        all tokens: lower above upper where none does."""
        factors = factors[self.chosen]
        ends = self.low[:, None] / factors, self.high[:, None] / factors
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        idle = (factors == 0) | ~factors.isfinite()
        possible = ((self.low <= 0) & (self.high >= 0))[:, None] | ~factors.isfinite()
        endless = torch.full_like(low, torch.inf)
        low = torch.where(idle, torch.where(possible, -endless, endless), low)
        return low.amax(0), torch.where(idle, endless, high).amin(0)


def deviating(clean: torch.Tensor, found: torch.Tensor, limit: float | None) -> torch.Tensor:
    """Where two tensors of one shape and type differ, bool: as words, or by more than `limit`. NaN and infinities that
    only one of them has always differ."""
    changed = words(clean) != words(found)
    if limit is None:
        return changed
    return changed & ~((found.double() - clean.double()).abs() <= limit)


def same_words(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape and type are equal to the bit."""
    if all(_eight_at_once(values) for values in (first, second)):  # four times as fast as two bytes at once
        return torch.equal(first.view(torch.int64), second.view(torch.int64))
    return torch.equal(words(first), words(second))


def _eight_at_once(values: torch.Tensor) -> bool:
    sizes = (values.shape[-1] * values.element_size(), values.storage_offset() * values.element_size())
    return values.is_contiguous() and all(size % 8 == 0 for size in sizes)


def explain(
    record: Record, clean: torch.Tensor, found: torch.Tensor, inputs: torch.Tensor | None, limit: float | None
) -> Explanation:
    """What explains that a module's output is `found` and not `clean`, both of shape (tokens, ..., channels), where its
    `inputs` are as in the record. `limit` is the size of deviations that mean nothing, None where all count."""
    where = deviating(clean, found, limit).flatten(0, -2)
    channels = where.any(0).nonzero()[:, 0]
    names = tuple(parameter.name for parameter in record.parameters)
    every = Explanation(names, tuple(channels.tolist()), ())
    if record.operation == "other" or inputs is None or not names:
        return every
    if record.operation == "embedding":
        return _of_table(record.parameters[0], every, where, inputs)
    found_words: list[Element] = []
    suspects: set[str] = set()
    factors = _factors(record, inputs)
    lost = _lost(clean.flatten(0, -2), inputs)
    for channel in channels[:_ROWS].tolist():
        old, new = (values.flatten(0, -2)[:, channel].double() for values in (clean, found))
        noise = _rounding(old, new, lost, clean.dtype) + (limit or 0.0)
        if record.operation == "norm":
            noise = noise + _OF_NORM * (new - old).abs().nan_to_num(0.0, 0.0)
        element, left = _of_channel(record, channel, _deviation(old, new, noise, clean.dtype), factors)
        found_words += element
        suspects |= left
    # Several changed words of a row leave no suspect: any of the tensors may hold them.
    tensors = tuple(name for name in names if name in suspects) or names
    return Explanation(tensors, every.channels, tuple(found_words))


def _of_table(table: Parameter, every: Explanation, where: torch.Tensor, rows: torch.Tensor) -> Explanation:
    tokens, channels = where.nonzero(as_tuple=True)
    places = sorted(set(zip(rows[tokens].tolist(), channels.tolist(), strict=True)))[:_ROWS]
    elements = tuple(Element(table.name, place, None) for place in places)
    return Explanation(every.tensors, every.channels, elements)


def _of_channel(
    record: Record, channel: int, deviation: _Deviation, factors: torch.Tensor
) -> tuple[list[Element], set[str]]:
    """The one word that explains a channel, if one alone does, and the tensors that hold one that does."""
    possible: list[Element] = []
    for parameter in record.parameters:
        if parameter.role == "bias":
            low, high = deviation.changes(torch.ones_like(factors[:, :1]))
        else:
            low, high = deviation.changes(factors[:, channel, None] if record.operation == "norm" else factors)
        for place in (low <= high).nonzero()[:, 0].tolist():
            index = _index(record, parameter, channel, place)
            possible.append(Element(parameter.name, index, (float(low[place]), float(high[place]))))
    if record.operation == "norm" and len(record.parameters) == 1 and not possible:
        # No other word makes this channel, however little is known of the change.
        possible.append(Element(record.parameters[0].name, (channel,), None))
    return (possible if len(possible) == 1 else []), {element.tensor for element in possible}


def _index(record: Record, parameter: Parameter, channel: int, column: int) -> tuple[int, ...]:
    if parameter.role == "bias" or record.operation == "norm":
        return (channel,)
    return (channel, column) if parameter.output_dim == 0 else (column, channel)


def _factors(record: Record, inputs: torch.Tensor) -> torch.Tensor:
    """What the words of a weight are multiplied by, float64, shape (tokens, columns): the inputs, or those of a norm as
    it scales them, its epsilon aside."""
    values = inputs.flatten(0, -2).double()
    if record.operation != "norm":
        return values
    if any(parameter.role == "bias" for parameter in record.parameters):
        values = values - values.mean(-1, keepdim=True)
    scale: torch.Tensor = values.square().mean(-1, keepdim=True).sqrt()
    return values / scale


def _lost(clean: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What sums of that many fp32 products, each token's as large as its largest output, may lose: float64, shape
    (tokens,)."""
    largest = clean.nan_to_num(0.0, 0.0, 0.0).abs().amax(-1).double()
    return torch.finfo(torch.float32).eps * math.sqrt(inputs.shape[-1]) * largest


def _rounding(old: torch.Tensor, new: torch.Tensor, lost: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By how much rounding may hide or add to a shift, float64, shape (tokens,): half a unit in the last place of both
    outputs, and what their sums lost."""
    sizes = (old.abs() + new.abs()).nan_to_num(0.0, 0.0)
    half = torch.finfo(dtype).eps / 2
    return half * sizes + lost + 16 * torch.finfo(torch.float32).eps * sizes + torch.finfo(dtype).tiny


def _deviation(old: torch.Tensor, new: torch.Tensor, noise: torch.Tensor, dtype: torch.dtype) -> _Deviation:
    """The shifts of one channel, shape (tokens,), at the tokens that tell most."""
    shift = new - old
    known = shift.isfinite()
    endless = torch.full_like(shift, torch.inf)
    low = torch.where(known, shift - noise, -endless)
    high = torch.where(known, shift + noise, endless)
    # An output that overflowed, or met an infinite weight, still tells the sign of its shift.
    huge = torch.finfo(dtype).max / 2
    low = torch.where((new == torch.inf) & old.isfinite(), huge, low)
    high = torch.where((new == -torch.inf) & old.isfinite(), -huge, high)
    chosen = shift.abs().nan_to_num(-1.0, torch.inf).argsort(descending=True)[:_TOKENS]
    return _Deviation(low[chosen], high[chosen], chosen)
