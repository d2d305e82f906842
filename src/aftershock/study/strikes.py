"""What the faults of a trial wrote, as its record keeps it: words one by one, and all of them in a digest."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aftershock.faults import (
    Element,
    Fault,
    ScatteredOutput,
    ScatteredWeights,
    StoredChange,
    StoredWordSite,
)
from aftershock.inject import Struck, StruckSet
from aftershock.replay import Batch
from aftershock.study.records import Strike


@dataclass(frozen=True)
class Words:
    """So many words that one fault wrote at once, with their digest; `batch` is the number of the batch that they
    belong to, None where that is all the same."""

    fault: int
    tensor: str
    count: int
    digest: str
    batch: int | None


@dataclass(frozen=True)
class Strikes:
    """Words one by one, of sets the first ones, and the sets themselves."""

    words: tuple[Strike, ...]
    sets: tuple[Words, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of it all."""
        words = [strike.model_dump(mode="json") for strike in self.words]
        sets = [(one.fault, one.tensor, one.count, one.digest) for one in self.sets]
        return hashlib.sha256(json.dumps(words + sets).encode()).hexdigest()

    def number_of(self, faults: Sequence[Fault]) -> int:
        """How many faults there were; a scattered one counts as the words that it wrote."""
        scattered = [isinstance(fault.site, ScatteredWeights | ScatteredOutput) for fault in faults]
        return scattered.count(False) + sum(one.count for one in self.sets if scattered[one.fault])


def strikes_of(batch: Batch, struck: Sequence[Struck | StruckSet], elements: Sequence[Element]) -> Strikes:
    """Those of one run; each under the number that its fault has in the set that was named."""
    item_of = {
        sequence: item.id
        for item, sequences in zip(batch.items, batch.sequence_of, strict=True)
        for sequence in sequences
    }
    single = [one for some in struck for one in ((some,) if isinstance(some, Struck) else some.first)]
    return Strikes(
        tuple(
            Strike(
                fault=elements[one.fault].of,
                tensor=one.tensor,
                index=one.index,
                item=None if one.row is None else item_of[one.row],
                old_bits=one.old_bits,
                new_bits=one.new_bits,
                old_value=one.old_value,
                new_value=one.new_value,
            )
            for one in single
        ),
        tuple(
            Words(
                elements[one.fault].of,
                one.tensor,
                one.count,
                one.digest,
                # Weights are struck once however many batches see them.
                None if one.first[0].row is None else batch.number,
            )
            for one in struck
            if isinstance(one, StruckSet)
        ),
    )


def stored_strikes(changes: Iterable[StoredChange], faults: Sequence[Fault]) -> Strikes:
    """The words of packed formats that were struck; what they did to weights are strikes of their own."""
    words = []
    for change in changes:
        site = faults[change.fault].site
        assert isinstance(site, StoredWordSite)
        words.append(
            Strike(
                fault=change.fault,
                tensor=f"{site.parameter}.{site.field}",
                index=(site.row, site.number),
                item=None,
                old_bits=change.old,
                new_bits=change.new,
                old_value=change.old_value,
                new_value=change.new_value,
            )
        )
    return Strikes(tuple(words), ())


def joined(parts: Iterable[Strikes]) -> Strikes:
    """All of them, each once: options of an item share their context, and batches the weights."""
    some = list(parts)
    # By bits, since NaN equals nothing.
    words = {
        (one.fault, one.tensor, one.index, one.item, one.old_bits, one.new_bits): one
        for part in some
        for one in part.words
    }
    # Of one batch none is there twice: its calls strike other tokens.
    return Strikes(tuple(words.values()), tuple(dict.fromkeys(one for part in some for one in part.sets)))
