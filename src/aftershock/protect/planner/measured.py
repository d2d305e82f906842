"""What protections do under the faults of a study: trials run once more with them, and which of them see what."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import element_faults
from aftershock.hardware import Unprotected
from aftershock.models import FIRST_TOKEN
from aftershock.numerics import words
from aftershock.protect.configs import (
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
from aftershock.protect.handle import Protected, protect
from aftershock.protect.tally import Site
from aftershock.replay import ItemRun, ReferenceExecutor, shapes_of
from aftershock.study import Plan, Trial, TrialRecord, trial_records

CHANGES_CLEAN_OUTPUTS = (Int8, RangeGuard, FirstTokenBounds)
"""Protections under which clean outputs may be others: golden runs are then the protected model's own."""


@dataclass(frozen=True)
class Seen:
    """What one protection saw in a trial: `sites` where something was wrong under the faults; `false_alarms`, rows or
    values that it called wrong in the golden runs of the same items."""

    sites: tuple[Site, ...]
    false_alarms: int


@dataclass(frozen=True)
class Detection:
    """What each protection saw in one trial, in the order in which they were given."""

    trial: int
    seen: tuple[Seen, ...]


def protected_records(
    plan: Plan, trials: Iterable[Trial], protections: Sequence[Protection], plain: ReferenceExecutor | None = None
) -> Iterator[TrialRecord]:
    """The records of trials whose faults strike a protected model, by the reference executor and without traces. The
    model is free again once the last was taken. Without protections they are the plain model's, by the same executor.

    `plain` is an executor of the plain model, whose golden runs are used again where several sets are tried.
    Several passes of an answer are one call there, as in every trial: a protection that acts once a call acts no more
    often than that, and `DualFirstToken` is left out where the fault strikes after the first token.
    Raises ContractError where golden runs are not the plain model's to the bit, though no protection is one of those
    that may change them, and InputError as `protect` does.
    """
    plain = reference(plan) if plain is None else plain
    chosen, later = _untraced(trials), tuple(one for one in protections if not isinstance(one, DualFirstToken))
    if len(later) < len(protections):
        yield from _records(plan, [trial for trial in chosen if not _begins_late(trial)], protections, plain)
        chosen = tuple(trial for trial in chosen if _begins_late(trial))
    yield from _records(plan, chosen, later, plain)


def reference(plan: Plan) -> ReferenceExecutor:
    """The reference executor for trials that run alone: answers that left golden's are written on in the rows of one
    batch, and not in as many as a study fills with several trials."""
    rows = max(len(batch.sequences) for batch in plan.batches)
    return ReferenceExecutor(plan.model, shapes=replace(shapes_of(plan.model), continued_rows=rows))


def _untraced(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """A trace is one more run, with hooks of its own."""
    return tuple(replace(trial, traced=False) for trial in trials)


def _begins_late(trial: Trial) -> bool:
    return bool(trial.faults) and all(fault.first > FIRST_TOKEN for fault in trial.faults)


def _records(
    plan: Plan, trials: Sequence[Trial], protections: Sequence[Protection], plain: ReferenceExecutor
) -> Iterator[TrialRecord]:
    if not protections:
        yield from trial_records(plain, plan, trials)
        return
    if not trials:
        return
    fixed = not any(isinstance(one, CHANGES_CLEAN_OUTPUTS) for one in protections)
    numbers = sorted({number for trial in trials for number in trial.batches})
    golden = {number: plain.golden(plan.batches[number]).items for number in numbers if fixed}
    with protect(plan.model, protections) as protected:
        shown = replace(plan, model=protected.model)
        executor = reference(shown)
        for number, clean in golden.items():
            found = executor.golden(plan.batches[number]).items
            for one, other in zip(clean, found, strict=True):
                if not _identical(one, other):
                    raise ContractError(f"batch {number} gives other bits on the protected model without any fault")
        yield from trial_records(executor, shown, trials)


def _identical(first: ItemRun, second: ItemRun) -> bool:
    return first.answer == second.answer and all(
        torch.equal(words(a), words(b)) for a, b in zip(first.logits, second.logits, strict=True)
    )


def detected_by(plan: Plan, trials: Iterable[Trial], protections: Sequence[Protection]) -> tuple[Detection, ...]:
    """Which protections see the faults of trials: all that can count without acting in one run of each trial, each
    other one (`Duplication`, `Scrub`, `Backup`, `Ecc`, `DualFirstToken`) in runs of its own, and so those of one kind
    that stand at the same place.

    Raises InputError for `Int8`, which sees nothing.
    """
    chosen = _untraced(trials)
    seen: dict[int, dict[int, Seen]] = {trial.number: {} for trial in chosen}
    for group in _groups(protections):
        for trial, found in _seen_by(plan, chosen, [_counting(protections[number]) for number in group]):
            seen[trial].update(zip(group, found, strict=True))
    return tuple(
        Detection(number, tuple(found[place] for place in range(len(protections)))) for number, found in seen.items()
    )


def golden_alarms(plan: Plan, protections: Sequence[Protection]) -> tuple[int, int]:
    """False alarms: of the rows and values that protections check in the golden runs of all batches how many they call
    wrong, and how many they check."""
    with protect(plan.model, [_counting(one) for one in protections]) as protected:
        executor = ReferenceExecutor(protected.model, memory=0)
        for batch in plan.batches:
            executor.golden(batch)
        counts = protected.report()
        return sum(one.wrong for one in counts) + len(protected.events), sum(one.checked for one in counts)


def _seen_by(plan: Plan, trials: Sequence[Trial], together: Sequence[Protection]) -> Iterator[tuple[int, list[Seen]]]:
    """Of each trial what protections of one model saw, each for itself."""
    with protect(plan.model, together) as protected:
        executor = reference(replace(plan, model=protected.model))
        for trial in trials:
            faults = tuple(one.fault for one in element_faults(plan.model, trial.faults))
            protected.reset()
            for number in trial.batches:
                executor.golden(plan.batches[number], faults)
            clean = [_wrong(protected, one) for one in together]
            protected.reset()
            # What golden gave is remembered: only the trial runs.
            for _ in trial_records(executor, plan, [trial]):
                faulty = [_wrong(protected, one) for one in together]
            yield (
                trial.number,
                [Seen(tuple(struck), sum(alarms.values())) for struck, alarms in zip(faulty, clean, strict=True)],
            )


def _wrong(protected: Protected, protection: Protection) -> dict[Site, int]:
    """How many rows or values one protection found wrong, by site."""
    name, places = type(protection).__name__, _places(protection)
    found = Counter[Site]()
    for count in protected.report():
        if (
            count.protection == name
            and count.wrong
            and (not places or places & {count.site.module, *count.site.components})
        ):
            found[count.site] += count.wrong
    for event in protected.events:
        if event.protection == name and not isinstance(protection, Checksum | Duplication):
            found[event.site] += event.wrong
    return dict(found)


def _counting(protection: Protection) -> Protection:
    """The protection that sees the same and does nothing, or itself where it can't but act."""
    match protection:
        case Checksum() if protection.scheme is not None:
            # Tiles are checked against the weight as it is, so that rows checked without a scheme would see more.
            return replace(protection, scheme=Unprotected())
        case Checksum():
            return replace(protection, action="count")
        case RangeGuard() | FirstTokenBounds() | FiniteScreen():
            return replace(protection, limit="count")
        case Int8():
            raise InputError("Int8 changes what is computed and sees nothing: leave it out of what is to detect")
        case _:
            return protection


def _groups(protections: Sequence[Protection]) -> list[list[int]]:
    """Numbers of protections that can look in one run, and be told apart by their kind and place."""
    groups: list[list[int]] = []
    for number, one in enumerate(protections):
        fitting = (group for group in groups if all(_compatible(one, protections[other]) for other in group))
        if (group := next(fitting, None)) is not None:
            group.append(number)
        else:
            groups.append([number])
    return groups


def _compatible(one: Protection, other: Protection) -> bool:
    acts = any(isinstance(each, Duplication | Scrub | Backup | Ecc | DualFirstToken) for each in (one, other))
    return not acts and (type(one) is not type(other) or not _places(one) & _places(other))


def _places(protection: Protection) -> frozenset[str]:
    """Components, modules or parameters that a protection names; none where it is the whole model's."""
    match protection:
        case RangeGuard():
            return frozenset(protection.bounds)
        case Backup() | Ecc():
            return frozenset(protection.parameters)
        case Scrub() | DualFirstToken():
            return frozenset()
        case _:
            return frozenset(protection.components)
