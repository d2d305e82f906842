"""Bits that, flipped back, may undo a corruption: those that the loss's gradient promises a fall for, and those whose
words are implausible in their tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from aftershock.locate.by_text.plausible import Exponents, exponents, exponents_in_use
from aftershock.locate.by_text.text_loss import LAST
from aftershock.models import LoadedModel, ParameterSite
from aftershock.numerics import NumberFormat, format_of, words

LEAST_GAIN = 2e-3
"""Falls of the loss, in nats a token, that are too small to look for."""

MARGIN = 2
"""Powers of two above those in use in a tensor that a word may have after a flip."""

_MOST = 1 << 15
"""Words of a tensor that are looked at bit by bit, those of the steepest gradients."""

_OUTLIERS = 4
"""Implausible words of one tensor that are suspects."""


@dataclass(frozen=True)
class Suspect:
    """Bit `bit` of word (or packed block) `place` of a parameter.

    `gain`: the fall of the loss, nats a token, that the gradient promises for flipping it; `likelier`: how much more
    plausible the word gets in its tensor, log-likelihood in nats; 0 where one tells nothing.
    """

    parameter: str
    place: int
    bit: int
    gain: float
    likelier: float


class WordsInUse(Protocol):
    """The words behind one parameter of a model that runs."""

    site: ParameterSite

    def promising(self, gradient: torch.Tensor) -> Iterator[Suspect]:
        """Bits whose flips promise a fall of the loss, by its gradient by the parameter; the most promising first."""

    def implausible(self) -> Iterator[Suspect]:
        """Bits whose flips make implausible words plausible; the greatest gain first."""

    def flip(self, place: int, bit: int) -> None:
        """Flip a bit, in the parameter too; flipping it again undoes it to the bit."""

    def bits(self, place: int) -> range:
        """The bits of a place."""

    def stays_plausible(self, place: int, bit: int) -> bool:
        """Whether a word is within what its tensor holds, or nearly so, with a bit flipped."""

    def likelier(self, place: int, bit: int) -> float:
        """Gain in log-likelihood (nats) of a word among those of its tensor as a bit is flipped."""


def layer_of(site: ParameterSite) -> int | None:
    """The decoder layer of a parameter; None before the layers (and where it serves on both sides), `LAST` behind."""
    return LAST if site.layer is None and site.component in ("norm", "lm_head") else site.layer


class PlainWords:
    """A parameter whose words are floating-point numbers; a place is an index in the flattened parameter."""

    def __init__(self, model: LoadedModel, site: ParameterSite) -> None:
        self.site = site
        parameter = model.module.get_parameter(site.name).detach()
        self.form = format_of(parameter.dtype)
        self.values = parameter.view(-1)
        self.stored = words(self.values)

    @cached_property
    def _in_use(self) -> Exponents:
        """Single words hardly change it."""
        return exponents_in_use(self.stored, self.form)

    def bits(self, place: int) -> range:
        """As `WordsInUse.bits`."""
        return range(self.form.bits)

    def element(self, place: int) -> tuple[int, ...]:
        """Index in the parameter."""
        return tuple(int(index) for index in np.unravel_index(place, self.site.stored_shape))

    def word(self, place: int) -> int:
        """A word, as an unsigned integer."""
        return int(self.stored[place]) & ((1 << self.form.bits) - 1)

    def flip(self, place: int, bit: int) -> None:
        """As `WordsInUse.flip`."""
        self.stored[place] ^= _masks(self.stored)[bit]

    def stays_plausible(self, place: int, bit: int) -> bool:
        """As `WordsInUse.stays_plausible`."""
        flipped = self.stored[place] ^ _masks(self.stored)[bit]
        return int(exponents(flipped, self.form)) <= self._in_use.top + MARGIN

    def likelier(self, place: int, bit: int) -> float:
        """As `WordsInUse.likelier`."""
        return flip_likelier(self._in_use, self.stored[place], bit, self.form)

    def implausible(self) -> Iterator[Suspect]:
        """As `WordsInUse.implausible`."""
        yield from implausible_words(self.site.name, self.stored, self.form)

    def promising(self, gradient: torch.Tensor) -> Iterator[Suspect]:
        """As `WordsInUse.promising`."""
        slope = gradient.flatten().float()
        most = self._in_use.top + MARGIN
        above = _value_of_exponent(min(most + 1, 2**self.form.exponent_bits - 1), self.values.dtype)
        largest = min(float(above), torch.finfo(self.values.dtype).max)
        bound = slope.abs() * (self.values.float().abs() + largest)
        bound = bound.nan_to_num(0.0, 0.0)
        places = (bound >= LEAST_GAIN).nonzero()[:, 0]
        if len(places) > _MOST:
            places = places[bound[places].topk(_MOST).indices]
        flipped = self.stored[places, None] ^ _masks(self.stored)
        change = flipped.view(self.values.dtype).float() - self.values[places, None].float()
        gain = (-slope[places, None] * change).nan_to_num(0.0, 0.0, 0.0)
        gain = torch.where(exponents(flipped, self.form) <= most, gain, 0.0)
        yield from _best(self.site.name, places, gain)


def _best(name: str, places: torch.Tensor, gain: torch.Tensor, most: int = 64) -> Iterator[Suspect]:
    """The best of gains of shape (places, bits)."""
    values, index = gain.flatten().topk(min(most, gain.numel()))
    kept = values >= LEAST_GAIN
    rows = places[index[kept] // max(gain.shape[-1], 1)]
    for value, place, number in zip(values[kept].tolist(), rows.tolist(), index[kept].tolist(), strict=True):
        yield Suspect(name, place, number % gain.shape[-1], value, 0.0)


def _masks(stored: torch.Tensor) -> torch.Tensor:
    """One mask for each bit of a word, of the words' type."""
    bits = 8 * stored.element_size()
    masks = torch.ones(bits, dtype=torch.int64) << torch.arange(bits)
    return masks.to(stored.dtype).to(stored.device)


def _value_of_exponent(field: int, dtype: torch.dtype) -> torch.Tensor:
    form = format_of(dtype)
    return torch.tensor([field << form.mantissa_bits], dtype=form.word).view(dtype).float()


def flip_likelier(in_use: Exponents, stored: torch.Tensor, bit: int, form: NumberFormat) -> float:
    """Gain in log-likelihood of one word (shape (), any integer dtype) as a bit of it is flipped."""
    now = exponents(stored, form).cpu()
    then = now ^ (1 << bit >> form.mantissa_bits & ((1 << form.exponent_bits) - 1))
    return float(in_use.log_likelihood(then) - in_use.log_likelihood(now))


def implausible_words(name: str, stored: torch.Tensor, form: NumberFormat) -> Iterator[Suspect]:
    """Words (any integer dtype, shape (n,)) above the exponents in use, and the bits that bring them back; places are
    their indices."""
    in_use = exponents_in_use(stored, form)
    fields = exponents(stored, form)
    above = (fields > in_use.top).nonzero()[:, 0]
    if len(above) > _OUTLIERS:
        above = above[fields[above].topk(_OUTLIERS).indices]
    flipped = fields[above, None] ^ _field_masks(form).to(fields.device)
    gain = (in_use.log_likelihood(flipped) - in_use.log_likelihood(fields[above, None])).tolist()
    for place, gains in zip(above.tolist(), gain, strict=True):
        for bit in sorted(range(form.exponent_bits), key=lambda bit: -gains[bit]):
            if gains[bit] > 0 and (int(fields[place]) ^ 1 << bit) <= in_use.top:
                yield Suspect(name, place, form.mantissa_bits + bit, 0.0, gains[bit])


def _field_masks(form: NumberFormat) -> torch.Tensor:
    return 1 << torch.arange(form.exponent_bits)
