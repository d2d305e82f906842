"""Suspects among packed words: quants and scales in blocks, out of which a parameter's values come."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from aftershock.locate.by_text.plausible import exponents, exponents_in_use
from aftershock.locate.by_text.suspects import LEAST_GAIN, MARGIN, Suspect, flip_likelier, implausible_words
from aftershock.models import LoadedModel, ParameterSite
from aftershock.numerics import BlockFormat, format_of, words

_BLOCKS = 16
"""Blocks of a tensor whose bits are tried in thought: those where a scale, and those where a quant promises most."""

_MOST = 64
"""Suspects of one tensor."""

Bytes = npt.NDArray[np.uint8]


class PackedWords:
    """The blocks behind a parameter; a place is a block, counted row by row, a bit one of those of its bytes."""

    def __init__(self, model: LoadedModel, site: ParameterSite) -> None:
        assert model.stored is not None
        stored = model.stored.tensor(site)
        parameter = model.module.get_parameter(site.name).detach()
        self.site = site
        self.form: BlockFormat = stored.form
        self.blocks: Bytes = np.array(stored.blocks).reshape(-1, self.form.size)
        self._transposed = stored.transposed
        self._rows = self._by_rows(parameter)
        self._number = format_of(parameter.dtype)

    def _by_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.T if self._transposed else tensor.flatten(0, -2)

    def bits(self, place: int) -> range:
        """As `WordsInUse.bits`."""
        return range(8 * self.form.size)

    def where(self, place: int) -> tuple[int, slice]:
        """Row and columns of a block's values."""
        row, block = divmod(place, self._rows.shape[1] // self.form.elements)
        return row, slice(block * self.form.elements, (block + 1) * self.form.elements)

    def element(self, place: int) -> tuple[int, ...]:
        """Index in the parameter of a block's first value."""
        row, columns = self.where(place)
        if self._transposed:
            return columns.start, row
        return (*(int(index) for index in np.unravel_index(row, self.site.stored_shape[:-1])), columns.start)

    def describe(self, place: int, bit: int) -> str:
        """Row and block of a place, and the field, word and bit of a bit of it."""
        row, columns = self.where(place)
        names = (
            f"{name} {word} bit {own}" if field.words > 1 else f"{name} bit {own}"
            for name, field in self.form.fields.items()
            for word, own in np.argwhere(field.places == bit)
        )
        return f"row {row}, block {columns.start // self.form.elements}: {', '.join(names) or 'no field'}"

    def flip(self, place: int, bit: int) -> None:
        """As `WordsInUse.flip`."""
        self.blocks[place] = _flipped(self.blocks[place], np.array([bit]))
        self._rows[self.where(place)] = self._values(self.blocks[place]).to(self._rows.device)

    def stays_plausible(self, place: int, bit: int) -> bool:
        """As `WordsInUse.stays_plausible`."""
        values = self._values(_flipped(self.blocks[place], np.array([bit])))
        return bool((exponents(words(values), self._number) <= self._most).all())

    def likelier(self, place: int, bit: int) -> float:
        """As `WordsInUse.likelier`: of the scale that a bit belongs to; quants are as likely as each other."""
        for field in self.form.fields.values():
            for places in field.places if field.number else ():
                if field.number and bit in places:
                    stored = torch.from_numpy(_words_of(self.blocks, places))
                    in_use = exponents_in_use(stored, field.number)
                    return flip_likelier(in_use, stored[place], int((places == bit).argmax()), field.number)
        return 0.0

    def _values(self, blocks: Bytes) -> torch.Tensor:
        return torch.from_numpy(np.array(self.form.dequantise(blocks))).to(self._number.dtype)

    @cached_property
    def _most(self) -> int:
        """The highest exponent field that a value may have after a flip. Each block's largest value counts, so that
        a broken scale counts once and is not in use."""
        largest = self._rows.reshape(len(self.blocks), -1).abs().amax(1)
        return exponents_in_use(words(largest), self._number).top + MARGIN

    def implausible(self) -> Iterator[Suspect]:
        """As `WordsInUse.implausible`: of the fields that are floating-point numbers."""
        for field in self.form.fields.values():
            if field.number is None:
                continue
            for places in field.places:
                stored = torch.from_numpy(_words_of(self.blocks, places))
                for suspect in implausible_words(self.site.name, stored, field.number):
                    yield Suspect(suspect.parameter, suspect.place, int(places[suspect.bit]), 0.0, suspect.likelier)

    def promising(self, gradient: torch.Tensor) -> Iterator[Suspect]:
        """As `WordsInUse.promising`: every bit of the blocks that promise most."""
        slopes = self._by_rows(gradient).reshape(len(self.blocks), -1).float()
        values = self._rows.reshape(len(self.blocks), -1).float()
        by_scale = (slopes * values).sum(1).abs().nan_to_num(0.0, 0.0)
        by_quant = slopes.abs().amax(1).nan_to_num(0.0, 0.0)
        most = min(_BLOCKS, len(self.blocks))
        places = torch.cat([by_scale.topk(most).indices, by_quant.topk(most).indices])
        places = torch.unique(places)
        found = list(self._gains(places.cpu().numpy(), slopes[places].cpu(), values[places].cpu()))
        yield from sorted(found, key=lambda one: -one.gain)[:_MOST]

    def _gains(self, places: npt.NDArray[np.int64], slopes: torch.Tensor, values: torch.Tensor) -> Iterator[Suspect]:
        """Suspects in some blocks; slopes and values of shape (blocks, elements)."""
        blocks, most = self.blocks[places], self._most
        for field in self.form.fields.values():
            # A word of each element has that one alone to do with: those of a block are flipped all at once.
            apart = field.words == self.form.elements
            for bits in field.places.T if apart else field.places.reshape(-1, 1):
                flipped = self._values(_flipped(blocks, bits))
                gains = (-slopes * (flipped.float() - values)).nan_to_num(0.0, 0.0, 0.0)
                gains = torch.where(exponents(words(flipped), self._number) <= most, gains, -torch.inf)
                gains = gains if apart else gains.sum(1, keepdim=True)
                for block, word in (gains >= LEAST_GAIN).nonzero().tolist():
                    gain = float(gains[block, word])
                    yield Suspect(self.site.name, int(places[block]), int(bits[word]), gain, 0.0)


def _flipped(blocks: Bytes, bits: npt.NDArray[np.int64]) -> Bytes:
    """Blocks, uint8 of shape (..., bytes), with these bits flipped in each."""
    masks = np.zeros(blocks.shape[-1], np.uint8)
    np.bitwise_xor.at(masks, bits // 8, (1 << (bits % 8)).astype(np.uint8))
    return blocks ^ masks


def _words_of(blocks: Bytes, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One word of each block, from the places of its bits."""
    found = np.zeros(len(blocks), np.int64)
    for bit, place in enumerate(places):
        found |= ((blocks[:, place // 8] >> (place % 8)) & 1).astype(np.int64) << bit
    return found
