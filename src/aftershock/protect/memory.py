"""Protections of the words in memory: compared or written back before a pass, and when a check finds a weight wrong."""

from collections.abc import Sequence
from typing import Any

import torch

from aftershock.detect import LineSums, TensorPrint, checksums, seed_of, take_fingerprint
from aftershock.errors import InputError
from aftershock.locate import WordChanges, locate_in_tensor, mend_in_module
from aftershock.models import live_words
from aftershock.numerics import words
from aftershock.protect.tally import Event, Site, Tally


class ScrubbedWords:
    """A fingerprint of all words of a module, taken now, and what it finds and mends later."""

    def __init__(self, module: torch.nn.Module, every: int, events: list[Event]) -> None:
        self._module, self._every, self._events = module, every, events
        self._words = live_words(module)
        self._fingerprint = take_fingerprint(self._words)
        self._passes = 0
        # The checksums of tensors that could not be mended: they are not searched again as long as they stay so.
        self._left: dict[str, tuple[int, int]] = {}

    @property
    def nbytes(self) -> int:
        """Memory of the sums of rows and columns."""
        kept = self._fingerprint.signatures.values()
        return sum(one.rows.nbytes + one.columns.nbytes for one in kept if isinstance(one, LineSums))

    def forget(self) -> None:
        """Search again what could not be mended before."""
        self._left = {}

    def before_pass(self, *_: Any) -> None:
        """As a forward pre-hook of the model."""
        if self._passes % self._every == 0:
            self.mend()
        self._passes += 1

    def mend(self) -> bool:
        """Put back all words that differ; whether any did, and all that did are as they were."""
        tensors = self._fingerprint.tensors
        found = checksums([self._words.tensor(one.tensor.name) for one in tensors], seed_of(None))
        wrong = [(one, now) for one, now in zip(tensors, found, strict=True) if now != one.checksum]
        self._left = {
            one.tensor.name: now
            for one, now in wrong
            if self._left.get(one.tensor.name) == now or not self._mended(one)
        }
        return bool(wrong) and not self._left

    def _mended(self, tensor: TensorPrint) -> bool:
        name = tensor.tensor.name
        found = locate_in_tensor(self._words, tensor, self._fingerprint.signatures[name])
        mended = mend_in_module(self._module, found, self._fingerprint)
        changed = len(found.rows) if isinstance(found, WordChanges) else 0
        self._events.append(Event(Site(name, "parameter", None), "Scrub", changed, "recover", mended))
        return mended


def parameters_named(module: torch.nn.Module, names: Sequence[str]) -> list[torch.nn.Parameter]:
    """A module's parameters by name. Raises InputError for a name that is none."""
    known = dict(module.named_parameters(remove_duplicate=False))
    if unknown := [name for name in names if name not in known]:
        if unknown[0] in dict(module.named_buffers(remove_duplicate=False)):
            raise InputError(
                f"{unknown[0]} is a buffer, as weights in integers are, and only parameters are kept so: "
                "leave it out, or use Scrub, which looks at both"
            )
        raise InputError(f"the model has no parameter {unknown[0]}: give one of those that named_parameters lists")
    return [known[name] for name in names]


class CopiedWords:
    """Copies of parameters as they are now, written back before each pass."""

    def __init__(self, module: torch.nn.Module, parameters: Sequence[str]) -> None:
        """Raises InputError for a name that is none."""
        own = [words(one.detach()) for one in parameters_named(module, parameters)]
        self._kept = [(one, one.clone()) for one in own]
        self.tallies = tuple(
            Tally(Site(name, "parameter", None), "Backup", own.device)
            for name, (own, _) in zip(parameters, self._kept, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Memory of the copies."""
        return sum(copy.nbytes for _, copy in self._kept)

    @torch.no_grad()
    def before_pass(self, *_: Any) -> None:
        """As a forward pre-hook of the model; nothing is read back."""
        for tally, (own, copy) in zip(self.tallies, self._kept, strict=True):
            tally.see(own != copy)
            own.copy_(copy)

    def mend(self) -> bool:
        """Write the copies back; whether any word differed."""
        differs = any(bool((own != copy).any()) for own, copy in self._kept)
        self.before_pass()
        return differs
