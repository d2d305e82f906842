"""Trials that share one teacher-forced run, each in rows of its own."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from aftershock.faults import ALWAYS, ActivationSite, Fault, WeightSite, splits
from aftershock.inject import Struck, StruckSet, changes_one_channel
from aftershock.models import LoadedModel
from aftershock.replay.executor import Job

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A trial and the rows that are its own; by their number in the set its faults in weights and (`activations`) those
    in what a run makes."""

    job: Job
    rows: range
    weights: tuple[int, ...]
    activations: tuple[int, ...]

    def faults(self, numbers: Sequence[int]) -> tuple[Fault, ...]:
        """Some of the job's faults."""
        return tuple(self.job.faults[number] for number in numbers)


def members(jobs: Sequence[Job], height: int) -> tuple[Member, ...]:
    """Each job with the next `height` rows."""
    return tuple(
        Member(
            job,
            range(place * height, (place + 1) * height),
            tuple(number for number, fault in enumerate(job.faults) if fault.in_weights),
            tuple(number for number, fault in enumerate(job.faults) if not fault.in_weights),
        )
        for place, job in enumerate(jobs)
    )


def weights_by_row(own: Sequence[Member], called: Sequence[int]) -> dict[tuple[int, ...], Sequence[Fault]]:
    """The weight faults of members, each by the places of its rows among those that a call has, which are in order."""
    return {
        tuple(range(bisect_left(called, member.rows.start), bisect_left(called, member.rows.stop))): member.faults(
            member.weights
        )
        for member in own
        if member.weights
    }


def sociable(model: LoadedModel, job: Job) -> bool:
    """Whether a job can share a run: it has faults, none needs a cut or strikes every token of an output, and those in
    weights are there all the time, in one channel, and in no module inside which something else is struck (it runs
    again for them)."""
    if any(fault.spreads for fault in job.faults):
        return False
    weights = [fault for fault in job.faults if fault.in_weights]
    always = all(fault.trigger == ALWAYS and changes_one_channel(model, fault) for fault in weights)
    again = {fault.site.parameter.rpartition(".")[0] for fault in weights if isinstance(fault.site, WeightSite)}
    struck = [fault.site.module for fault in job.faults if isinstance(fault.site, ActivationSite)]
    inside = any(module.startswith(f"{name}.") for module in struck for name in again)
    return bool(job.faults) and not splits(job.faults) and always and not inside


def renumbered(struck: Iterable[Struck | StruckSet], numbers: Sequence[int]) -> tuple[Struck | StruckSet, ...]:
    """Strikes of faults that are `numbers` of their set, numbered as there."""
    return tuple(replace(one, fault=numbers[one.fault]) for one in struck)


def strikes_of(member: Member, struck: Iterable[Struck | StruckSet], begin: int) -> tuple[Struck | StruckSet, ...]:
    """The member's own strikes among those of all activation faults, of which its own begin with number `begin`;
    rows are counted from its first."""
    own = range(begin, begin + len(member.activations))
    return renumbered(
        (
            replace(one, fault=one.fault - begin, row=one.row - member.rows.start)
            for one in struck
            if isinstance(one, Struck) and one.fault in own and one.row is not None
        ),
        member.activations,
    )


def in_parts(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` things, the last one shorter."""
    source = iter(things)
    while part := list(islice(source, size)):
        yield part
