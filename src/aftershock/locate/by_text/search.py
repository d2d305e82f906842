"""Self-referential location: the corrupted model, some text, nothing else.

Each round runs the text once, lists suspects (implausible words; words whose gradient promises a fall of the loss when
a bit is flipped), tries them, and keeps what the loss confirms. When no flip helps, the residual path tells whether
some branch is better left out. A model in which neither helps has no corruption that the text can show.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t

from aftershock.locate.by_text.branches import Damped, profile
from aftershock.locate.by_text.suspects import Suspect, WordsInUse, layer_of
from aftershock.locate.by_text.text_loss import TextLoss
from aftershock.locate.by_text.words import words_in_use
from aftershock.models import LoadedModel, Progress, quiet

CONVINCING = 0.04
"""Fall of the loss, nats a token, that a repair must bring: healthy models offer single flips of up to about 0.004 on
text of several kinds (docs/repair.md)."""

_CONFIDENCE = 0.975
"""Confidence that the fall is one, by Student's t over the rows of text, where the word is plausible as it is."""

_CLEARLY_WRONG = 12.0
"""Log-likelihood, in nats, from which a word is as good as known to be wrong."""

_SLIGHT = 0.003
"""Fall that is enough for such a word."""

_WORDS_PER_LAYER = 3
"""Words tried in a round, for each layer of the model: those that the gradient puts first."""

_BITS = 2
"""Bits tried of each at first; of a word that convinces, all."""

_IMPLAUSIBLE = 16
"""Implausible words tried in a round."""

_LAYERS = 3
"""Layers that are searched by themselves where nothing else helps."""

_MOST_FLIPS = 128
"""Flips after which the search ends."""

_MOST_BITS = 32
"""Bits of a word that are tried; a packed block has more."""

_PASSES = 60
"""Passes for each layer after which it begins no other round."""


@dataclass(frozen=True)
class Tried:
    """A suspect, and how far the loss of each row falls with its bit flipped: nats a token, float64, shape (rows,)."""

    suspect: Suspect
    falls: torch.Tensor

    @property
    def gain(self) -> float:
        """Mean fall."""
        return float(self.falls.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean over rows."""
        return float(self.falls.std() / math.sqrt(len(self.falls)))

    @property
    def convincing(self) -> bool:
        """Whether the fall is more than a healthy model's words offer."""
        if self.suspect.likelier >= _CLEARLY_WRONG:
            return self.gain >= _SLIGHT
        return self.gain >= max(CONVINCING, float(t.ppf(_CONFIDENCE, len(self.falls) - 1)) * self.error)


@dataclass(frozen=True)
class Found:
    """What a search found.

    `flips`: bits that were flipped back, in order, with the fall of the loss that each brought. `branches`: the
    profile of the residual path, the largest fall first; empty where flips explained all. `before` and `after`: loss
    of each row as the model came and with the flips, nats a token. `layers`: the layers by suspicion: those of the
    flips, by what these brought, then others by what a flip or a damped branch in them would (None: before the layers;
    `LAST`: behind). `passes`: forward passes that the search took.
    """

    flips: tuple[Tried, ...]
    branches: tuple[Damped, ...]
    before: torch.Tensor
    after: torch.Tensor
    layers: tuple[int | None, ...]
    passes: float

    @property
    def corrupted(self) -> bool:
        """Whether anything was found that healthy models don't show."""
        return bool(self.flips) or any(one.gain >= CONVINCING for one in self.branches)


class Search:
    """A search in a model that runs; flips that convince stay in it."""

    def __init__(self, model: LoadedModel, tokens: torch.Tensor, progress: Progress = quiet) -> None:
        self.model, self._progress = model, progress
        self.text = TextLoss(model, tokens)
        self.words = words_in_use(model)
        self._unlikely: dict[str, tuple[Suspect, ...]] = {}
        self._flipped: set[tuple[str, int, int]] = set()

    def run(self) -> Found:
        """Search until nothing more convinces."""
        kept: list[Tried] = []
        seen: dict[int | None, float] = {}
        branches: tuple[Damped, ...] = ()
        self._unlikely.clear()
        start = self.text.passes
        first = base = self.text.refresh()
        most = start + _PASSES * len(self.text.layers)
        while len(kept) < _MOST_FLIPS and self.text.passes < most:
            found = self._round(base, seen)
            if not found and not kept and not branches:
                self._progress("no flip helps: leaving out one branch after the other")
                branches = profile(self.model, self.text, base)
                for one in branches:
                    seen[one.branch.layer] = max(one.gain, seen.get(one.branch.layer, 0.0))
                found = self._within(branches, base, seen)
            kept += found
            if not found:
                break
            base = self.text.refresh()
        # A flip that makes up for another one's fault may convince before that one does, but gains less.
        largest = sorted(kept, key=lambda one: -one.gain)
        own = dict.fromkeys(layer_of(self.words[one.suspect.parameter].site) for one in largest)
        others = sorted(seen, key=lambda layer: -seen[layer])
        return Found(
            tuple(kept), branches, first, base, tuple(dict.fromkeys([*own, *others])), self.text.passes - start
        )

    def undo(self) -> None:
        """Put the model back as it came, whatever was under way."""
        for parameter, place, bit in tuple(self._flipped):
            self.words[parameter].flip(place, bit)
        self._flipped.clear()

    def _round(self, base: torch.Tensor, seen: dict[int | None, float]) -> list[Tried]:
        """The flips of one round that convince; they are left in the model."""
        return (
            self._tries(self._implausible(), base, seen)
            or self._jointly(base)
            or self._tries(self._promising(self.words), base, seen)
        )

    def _jointly(self, base: torch.Tensor) -> list[Tried]:
        """The words that are clearly wrong, all at once: each may hide what the others do."""
        suspects = [one for one in self._implausible() if one.likelier >= _CLEARLY_WRONG]
        if len(suspects) < 2:
            return []
        for one in suspects:
            self._flip(one)
        mended = self.text.refresh()
        if float((base - mended).mean()) < CONVINCING:
            for one in suspects:
                self._flip(one)
            self.text.refresh()
            return []
        kept = []
        for one in suspects:
            without = self._try(one, mended)
            if without.gain > -_SLIGHT:
                self._flip(one)
                mended = self.text.refresh()
            else:
                kept.append(Tried(one, -without.falls))
                self._unlikely.pop(one.parameter, None)
        return kept

    def _within(self, branches: Sequence[Damped], base: torch.Tensor, seen: dict[int | None, float]) -> list[Tried]:
        """The same among the words of the layers that the loss would rather do without, one layer after the other."""
        layers = dict.fromkeys(one.branch.layer for one in branches if one.gain >= CONVINCING)
        for layer in list(layers)[:_LAYERS]:
            own = {name: words for name, words in self.words.items() if words.site.layer == layer}
            if kept := self._tries(self._promising(own), base, seen):
                return kept
        return []

    def _tries(self, suspects: Iterable[Suspect], base: torch.Tensor, seen: dict[int | None, float]) -> list[Tried]:
        listed = list(suspects)
        self._progress(f"loss {float(base.mean()):.4f}: trying {len(listed)} flips")
        tried = [self._try(suspect, base) for suspect in listed]
        for one in tried:
            layer = layer_of(self.words[one.suspect.parameter].site)
            seen[layer] = max(one.gain, seen.get(layer, 0.0))
        return self._keep(tried, base)

    def _keep(self, tried: Sequence[Tried], base: torch.Tensor) -> list[Tried]:
        """Flip what convinces, the best bit of each word, as long as each flip still helps beside those before it."""
        kept: list[Tried] = []
        words = set()
        for one in sorted(tried, key=lambda one: -one.gain):
            word = one.suspect.parameter, one.suspect.place
            if not one.convincing or word in words:
                continue
            words.add(word)
            best = self._best_bit(one.suspect, base)
            if best is None:
                continue
            self._flip(best.suspect)
            now = self.text.refresh()
            if not Tried(best.suspect, base - now).convincing:
                self._flip(best.suspect)
                self.text.refresh()
                continue
            self._unlikely.pop(best.suspect.parameter, None)
            kept.append(Tried(best.suspect, base - now))
            base = now
        return kept

    def _best_bit(self, suspect: Suspect, base: torch.Tensor) -> Tried | None:
        """The bit of the same word for which most speaks: what the text says, and how plausible the word gets. None
        where, beside the flips made since the suspect was tried, no bit of it convinces any more."""
        words = self.words[suspect.parameter]
        others = [
            Suspect(suspect.parameter, suspect.place, bit, 0.0, suspect.likelier)
            for bit in words.bits(suspect.place)
            if bit != suspect.bit and words.stays_plausible(suspect.place, bit)
        ]
        tried = [self._try(each, base) for each in [suspect, *others[:_MOST_BITS]]]
        return max(
            (each for each in tried if each.convincing),
            key=lambda each: self.text.targets * each.gain + words.likelier(suspect.place, each.suspect.bit),
            default=None,
        )

    def _implausible(self) -> Iterator[Suspect]:
        for name, words in self.words.items():
            if name not in self._unlikely:
                self._unlikely[name] = tuple(words.implausible())
        found = [suspect for own in self._unlikely.values() for suspect in own]
        return _bits_of_first(sorted(found, key=lambda one: -one.likelier), _IMPLAUSIBLE, 1)

    def _promising(self, words: Mapping[str, WordsInUse]) -> Iterator[Suspect]:
        found: list[Suspect] = []
        self.text.visit_gradients(words, lambda name, slope: found.extend(words[name].promising(slope)))
        most = _WORDS_PER_LAYER * len(self.text.layers)
        return _bits_of_first(sorted(found, key=lambda one: -one.gain), most, _BITS)

    def _try(self, suspect: Suspect, base: torch.Tensor) -> Tried:
        words = self.words[suspect.parameter]
        self._flip(suspect)
        try:
            return Tried(suspect, base - self.text.after_flip(layer_of(words.site)))
        finally:
            self._flip(suspect)

    def _flip(self, suspect: Suspect) -> None:
        self.words[suspect.parameter].flip(suspect.place, suspect.bit)
        self._flipped ^= {(suspect.parameter, suspect.place, suspect.bit)}


def _bits_of_first(suspects: Iterable[Suspect], words: int, bits: int) -> Iterator[Suspect]:
    """The first so many words, and so many bits of each."""
    taken: dict[tuple[str, int], int] = {}
    for suspect in suspects:
        word = suspect.parameter, suspect.place
        if taken.get(word, 0) < bits and (word in taken or len(taken) < words):
            taken[word] = taken.get(word, 0) + 1
            yield suspect
