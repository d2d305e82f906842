"""The schemes that are compared, and which faults each can act on at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aftershock.protect import (
    Backup,
    Checksum,
    DualFirstToken,
    Duplication,
    Ecc,
    FiniteScreen,
    FirstTokenBounds,
    Int8,
    Protection,
    RangeGuard,
    Scrub,
)
from benchmarks.protect_parts import REDUCING, Part

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Scheme:
    """Protections that are used together. `acts(record, seen)` tells whether they can have changed a trial: `record`
    is the plain trial's, `seen` the components at which each kind of check saw the fault. A scheme that does not act
    leaves the trial as it was, to the bit, and need not be run."""

    name: str
    protections: tuple[Protection, ...]
    acts: Callable[[Json, Mapping[str, Sequence[str]]], bool]


def detectors(bounds: Mapping[str, tuple[float, float]]) -> tuple[Protection, ...]:
    """Checks that look at each fault together, and do nothing."""
    return Checksum(action="count"), RangeGuard(bounds, limit="count"), FiniteScreen()


def schemes(part: Part, bounds: Mapping[str, tuple[float, float]], kept: Sequence[Backup | Ecc]) -> tuple[Scheme, ...]:
    """What is compared on a part, the most wanted first."""

    def saw(kind: str, components: Sequence[str] = ()) -> Callable[[Json, Mapping[str, Sequence[str]]], bool]:
        return lambda _, seen: bool(set(seen[kind]) & set(components) if components else seen[kind])

    def everywhere(record: Json, seen: Mapping[str, Sequence[str]]) -> bool:
        return True

    def in_weights_of(names: Sequence[str]) -> Callable[[Json, Mapping[str, Sequence[str]]], bool]:
        return lambda record, _: record["tensor"] in names

    transient = part.site != "weight"
    found = [
        Scheme("full checksums + fingerprint", (Checksum(), Scrub()), everywhere),
        Scheme("selective checksums", (Checksum(REDUCING),), saw("Checksum", REDUCING)),
        Scheme("range guards", (RangeGuard(bounds),), saw("RangeGuard")),
        Scheme("finite screen", (FiniteScreen(limit="clamp"),), saw("FiniteScreen")),
        Scheme("zeroing", (Checksum(action="zero"),), saw("Checksum")),
    ]
    if transient:
        found.append(Scheme("duplication", (Duplication(),), everywhere))
        found.append(Scheme("dual first token", (DualFirstToken(),), everywhere))
    else:
        found += [Scheme(copied(one), (one,), in_weights_of(one.parameters)) for one in kept]
    return tuple(found)


def copied(kept: Backup | Ecc) -> str:
    """The name of copies, or check words, of the most fragile parts."""
    return f"{type(kept).__name__} of 5 %"


def generation_schemes(bounds: Mapping[str, tuple[float, float]]) -> dict[str, tuple[Protection, ...]]:
    """What is compared where answers are written token by token."""
    return {
        "first-token bounds": (FirstTokenBounds(),),
        "dual first token": (DualFirstToken(),),
        "range guards": (RangeGuard(bounds),),
        "full checksums + fingerprint": (Checksum(), Scrub()),
    }


INT8 = (Int8(REDUCING[1:]),)
