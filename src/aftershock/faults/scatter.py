"""Which words a scattered set strikes: a pure function of its fault and the shape that it lies in.

Sets are drawn in blocks, each from a generator of its own, so that a part of a set can be drawn without the rest and
memory goes with the words struck alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from aftershock.errors import InputError
from aftershock.faults.corruption import Corruption, Drawn, bits_of
from aftershock.faults.draws import distinct
from aftershock.faults.fault import Fault
from aftershock.faults.selection import Population, Selection
from aftershock.faults.sites import Scatter, ScatteredOutput, ScatteredWeights
from aftershock.models import FIRST_TOKEN, PREFILL, HeadSite, OutputSite, ParameterSite, decode
from aftershock.numerics import NumberFormat, generator

_BLOCK_VALUES = 2**18
"""Values of a parameter that are drawn at a time under a rate."""

_BLOCK_TOKENS = 64
"""Tokens of an output that are drawn at a time under a rate."""

_BLOCKS_KEPT = 8
"""Blocks of an output that are remembered: rows of a batch stand at different tokens, and one after the other comes."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Struck values, all arrays of shape (n,).

    `values`: their numbers, int64, ascending. `masks`, uint32: the bits struck in each, zero where a corruption changes
    the whole value. `numbers`, float64: what is drawn for each to replace it by or to add, empty where nothing is.
    """

    values: Integers
    masks: npt.NDArray[np.uint32]
    numbers: npt.NDArray[np.float64]

    def part(self, start: int, stop: int) -> "Places":
        """Those with a number in [start, stop)."""
        begin, end = np.searchsorted(self.values, (start, stop))
        return Places(self.values[begin:end], self.masks[begin:end], self.numbers[begin:end])


def every(values: Integers, corruption: Corruption) -> Places:
    """All of some values, struck in all of the corruption's bits."""
    mask = sum(1 << bit for bit in bits_of(corruption))
    return Places(values, np.full(len(values), mask, dtype=np.uint32), np.empty(0))


def joined(parts: list[Places]) -> Places:
    """Some sets as one, in their order."""
    return Places(
        np.concatenate([np.empty(0, dtype=np.int64), *(part.values for part in parts)]),
        np.concatenate([np.empty(0, dtype=np.uint32), *(part.masks for part in parts)]),
        np.concatenate([np.empty(0), *(part.numbers for part in parts)]),
    )


def scattered_weights(fault: Fault, part: ParameterSite) -> Places:
    """What a set strikes in a parameter; `values` are offsets in the flattened stored tensor."""
    found = joined(list(_weight_blocks(fault, part)))
    return Places(part.locate(found.values), found.masks, found.numbers)


def strikes_any(fault: Fault, part: ParameterSite) -> bool:
    """Whether a set strikes a single word; as fast as the first one is found."""
    return any(len(block.values) for block in _weight_blocks(fault, part))


def _weight_blocks(fault: Fault, part: ParameterSite) -> Iterator[Places]:
    site = fault.site
    assert isinstance(site, ScatteredWeights)
    stream = f"scattered weight {part.name} {part.component}"
    if isinstance(site.scatter.amount, int):
        yield _drawn(site.scatter, fault.corruption, part.numel, stream, 0)
        return
    for block, start in enumerate(range(0, part.numel, _BLOCK_VALUES)):
        size = min(_BLOCK_VALUES, part.numel - start)
        yield _shifted(_drawn(site.scatter, fault.corruption, size, stream, block), start)


class TokenScatter:
    """A set that a fault strikes in an output, token by token. Its blocks drawn last are remembered."""

    def __init__(self, fault: Fault, part: OutputSite | HeadSite) -> None:
        assert isinstance(fault.site, ScatteredOutput)
        self._scatter, self._corruption, self._part = fault.site.scatter, fault.corruption, part
        self._stream = f"scattered activation {part.module} {part.component}"
        self._block = lru_cache(_BLOCKS_KEPT)(self._drawn)

    def at(self, tokens: range, prefill: int) -> Places:
        """What is struck at some tokens of a row; `values` count all places of the tokens before, then those of the
        token. Tokens are counted from the row's first, and its first `prefill` ones are those of prefill.

        Nothing else of the row or of the batch has a part in it; under a rate not even `prefill` has. Raises InputError
        where prefill has fewer places than a count wants.
        """
        blocks = []
        for number, own in self._blocks(tokens, prefill):
            start, stop = self._bounds(own)
            blocks.append(_shifted(self._block(number, stop - start), start))
        return joined(blocks).part(*self._bounds(tokens))

    def tokens_of(self, values: Integers, stop: int) -> tuple[Integers, Integers]:
        """The token, below `stop`, that each of some places belongs to, and its number among that token's own."""
        begins = self._part.places_before(np.arange(stop))
        tokens = np.searchsorted(begins, values, side="right") - 1
        return tokens, values - begins[tokens]

    def _bounds(self, tokens: range) -> tuple[int, int]:
        """Numbers of the first place of some tokens, and of the first after them."""
        start, stop = self._part.places_before(np.array([tokens.start, tokens.stop])).tolist()
        return start, stop

    def _drawn(self, number: int, values: int) -> Places:
        return _drawn(self._scatter, self._corruption, values, self._stream, number)

    def _blocks(self, tokens: range, prefill: int) -> Iterator[tuple[int, range]]:
        """Numbers and tokens of the blocks in which some tokens lie."""
        if isinstance(self._scatter.amount, float):
            for number in range(tokens.start // _BLOCK_TOKENS, -(-tokens.stop // _BLOCK_TOKENS)):
                yield number, range(number * _BLOCK_TOKENS, (number + 1) * _BLOCK_TOKENS)
            return
        # A count is one of each pass.
        if tokens.start < prefill:
            yield PREFILL, range(prefill)
        for token in range(max(tokens.start, prefill), tokens.stop):
            yield FIRST_TOKEN + token - prefill, range(token, token + 1)


def _shifted(places: Places, start: int) -> Places:
    return Places(places.values + start, places.masks, places.numbers)


def _drawn(scatter: Scatter, corruption: Corruption, values: int, stream: str, block: int) -> Places:
    """The set of one block of so many values."""
    random = generator(scatter.key, block, stream)
    bits = np.array(bits_of(corruption), dtype=np.uint32)
    population = values * max(1, len(bits))
    if isinstance(scatter.amount, float):
        places = _independent(random, population, scatter.amount)
    elif scatter.amount <= population:
        places = np.sort(distinct(random, population, scatter.amount))
    else:
        raise InputError(f"count {scatter.amount} does not fit in the {population} places of a prompt: lower it")
    struck, masks = places, np.zeros(len(places), dtype=np.uint32)
    if len(bits):
        struck, bit = np.divmod(places, len(bits))
        masks = np.uint32(1) << bits[bit]
        begin = np.flatnonzero(np.diff(struck, prepend=-1))
        if len(begin) < len(struck):
            struck, masks = struck[begin], np.bitwise_or.reduceat(masks, begin)
    numbers = np.empty(0)
    if isinstance(corruption, Drawn):
        numbers = random.uniform(corruption.low, corruption.high, len(struck))
    return Places(struck, masks, numbers)


def _independent(random: np.random.Generator, population: int, chance: float) -> Integers:
    """The numbers below `population`, ascending, of which each is there with a chance on its own: the gaps between
    neighbours are geometric, so cost and memory go with those that are there."""
    found, last = [], -1
    while last < population:
        mean = (population - last) * chance
        # No gap need be longer than what is left, and a sum of such can't overflow.
        gaps = np.minimum(random.geometric(chance, int(mean + 4 * np.sqrt(mean)) + 8), population + 1)
        found.append(last + np.cumsum(gaps))
        last = int(found[-1][-1])
    places = np.concatenate(found)
    return places[: np.searchsorted(places, population)]


def check_per_pass(selection: Selection, population: Population, number_format: NumberFormat, shortest: int) -> None:
    """Raise InputError where `per_pass` wants more places than there are in some pass of a prompt of `shortest`
    tokens."""
    if selection.per_pass is None:
        return
    whole = selection.corruption in ("replace", "add")
    bits = 1 if whole else len(selection.bit_positions(number_format))
    for site in (*population.outputs, *population.accumulators):
        for name, tokens in _first_passes(selection, shortest - 1).items():
            start, stop = site.places_before(np.array([tokens.start, tokens.stop])).tolist()
            if selection.per_pass > bits * (stop - start):
                raise InputError(
                    f"per_pass = {selection.per_pass}, but {site.component} has {bits * (stop - start)} places in the "
                    f"{name} pass of the shortest prompt: lower it, or leave that component out"
                )


def _first_passes(selection: Selection, prefill: int) -> dict[str, range]:
    """Tokens of the passes that a selection strikes first, in prefill (which has so many tokens) and after it: later
    passes have no fewer places."""
    lasting = selection.lasting_outputs
    if lasting is None:
        in_prefill, later = "prefill" in selection.stages, selection.stages != ("prefill",)
        first = FIRST_TOKEN if "first_token" in selection.stages else decode(1)
    else:
        in_prefill, later = lasting.first == PREFILL, lasting.end != FIRST_TOKEN
        first = max(lasting.first, FIRST_TOKEN)
    token = prefill + first - FIRST_TOKEN
    found = {"prefill": range(prefill)} if in_prefill and prefill else {}
    return found | ({"first later": range(token, token + 1)} if later else {})
