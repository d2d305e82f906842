"""Work dealt out to workers elsewhere: grouped, given, given again where a worker was lost."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType, TracebackType
from typing import Protocol, cast

from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault, ScatteredWeights, StoredWordSite, WeightSite, site_of
from aftershock.study.plan import Plan, Trial
from aftershock.study.records import GeneratedTrial, NoiseRecord, TrialRecord
from aftershock.study.worker import Duty, Failed, Free, Lost, Message, Result, Task

LARGEST_PART = MappingProxyType({"cpu": 64, "cuda": 512})
"""Tasks that a worker gets at once at most, by device: an executor shares passes among the trials it has."""

LOSSES = 3
"""So many lost workers end the study: by one part of the work, or one after the other before they could begin."""


class Team(Protocol):
    """Workers somewhere else, in places numbered from 0."""

    def start(self) -> int:
        """Make ready to hire; the number of places."""
        ...

    def hire(self, place: int) -> None:
        """Start a worker, in place of the one before it; it says Free once it has loaded its model."""
        ...

    def give(self, place: int, duty: Duty, tasks: Sequence[Task]) -> None:
        """Give work to a worker that is free."""
        ...

    def hear(self) -> Sequence[tuple[int, Message]]:
        """Wait until some worker says something."""
        ...

    def dismiss(self) -> None:
        """End all workers at once."""
        ...


@dataclass
class _Part:
    """Tasks given to one worker together; those whose result came are taken out."""

    duty: Duty
    tasks: dict[int, Task]
    losses: int = 0


class Dealt:
    """A crew of workers elsewhere. The workers start, and load their models, when it is entered."""

    def __init__(self, plan: Plan, team: Team) -> None:
        self._plan, self._team = plan, team
        self._largest = LARGEST_PART.get(plan.model.device.type, LARGEST_PART["cuda"])
        self._size = 0
        self._free: set[int] = set()
        self._failed_starts = 0

    def __enter__(self) -> "Dealt":
        try:
            self._size = self._team.start()
            for place in range(self._size):
                self._team.hire(place)
        except BaseException:
            self._team.dismiss()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._check()
        finally:
            self._team.dismiss()

    def trials(self, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
        """Trials by the study's executor."""
        for result in self._dealt("trials", grouped(self._plan, trials)):
            yield cast(TrialRecord, result.record)

    def audits(self, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
        """Trials by the reference executor, not traced."""
        for result in self._dealt("audits", grouped(self._plan, trials)):
            yield cast(TrialRecord, result.record)

    def generated(self, trials: Iterable[Trial]) -> Iterator[GeneratedTrial]:
        """Trials by plain `generate`."""
        for result in self._dealt("generated", grouped(self._plan, trials)):
            yield cast(GeneratedTrial, result.record)

    def noise(self, numbers: Iterable[int]) -> Iterator[tuple[int, NoiseRecord]]:
        """Perturbations of the noise floor, by number."""
        # One batch's perturbations lie a sweep apart: a worker that has its golden run gets them all.
        batches = len(self._plan.used_batches)
        tasks = {number: number for number in sorted(numbers, key=lambda number: (number % batches, number))}
        for result in self._dealt("noise", tasks):
            yield result.number, cast(NoiseRecord, result.record)

    def _dealt(self, duty: Duty, tasks: Mapping[int, Task]) -> Iterator[Result]:
        """The result of every task, whatever becomes of the workers."""
        numbers = list(tasks)
        waiting = deque(
            _Part(duty, {number: tasks[number] for number in numbers[part]})
            for part in parts(len(numbers), self._size, self._largest)
        )
        given: dict[int, _Part] = {}
        while waiting or given:
            while waiting and self._free:
                place = self._free.pop()
                given[place] = waiting.popleft()
                self._team.give(place, duty, tuple(given[place].tasks.values()))
            for place, message in self._team.hear():
                if isinstance(message, Result):
                    del given[place].tasks[message.number]
                    yield message
                elif (again := self._changed(place, message, given.pop(place, None))) is not None:
                    waiting.appendleft(again)

    def _changed(self, place: int, message: Free | Failed | Lost, part: _Part | None) -> _Part | None:
        """Take note of what a worker says at its end of a part; the part where another is to go on with it."""
        match message:
            case Failed(error):
                raise error
            case Free():
                if part is not None and part.tasks:
                    raise ContractError(f"a worker left {_named(part)} without a result")
                self._free.add(place)
                self._failed_starts = 0
                return None
            case Lost(reason):
                was_free = place in self._free
                self._free.discard(place)
                if part is not None and part.tasks:
                    part.losses += 1
                    if part.losses == LOSSES:
                        raise InputError(_given_up(part, reason))
                elif part is None and not was_free:
                    self._failed_starts += 1
                    if self._failed_starts == LOSSES:
                        raise InputError(f"workers are lost before they can begin ({reason}): {_MEND}")
                self._team.hire(place)
                return part if part is not None and part.tasks else None

    def _check(self) -> None:
        """Every worker that is there compares its model's hash with the plan's."""
        checking = set(self._free)
        for place in checking:
            self._team.give(place, "check", ())
        while checking:
            for place, message in self._team.hear():
                if isinstance(message, Failed) and place in checking:
                    raise message.error
                checking.discard(place)


_MEND = "see that memory suffices for so many models, take fewer workers, and go on with --resume"


def _given_up(part: _Part, reason: str) -> str:
    return f"{LOSSES} workers were lost at {_named(part)} (the last one: {reason}); what was stored is safe: {_MEND}"


def _named(part: _Part) -> str:
    what = "perturbations" if part.duty == "noise" else "trials"
    return f"{what} {', '.join(map(str, sorted(part.tasks)))}"


def parts(count: int, workers: int, largest: int) -> Iterator[slice]:
    """Slices of `count` tasks: each a share of what is left, so that the last ones, which workers wait for, are small
    (guided self-scheduling, Polychronopoulos and Kuck, IEEE Transactions on Computers 1987, with half shares)."""
    begin = 0
    while begin < count:
        size = min(largest, ceil((count - begin) / (2 * workers)))
        yield slice(begin, begin + size)
        begin += size


def grouped(plan: Plan, trials: Iterable[Trial]) -> dict[int, Trial]:
    """Trials by number, those side by side that an executor can best run together: of the same batches, whose golden
    state one worker then keeps, then of the same first faulty layer and site."""

    def place(trial: Trial) -> tuple[tuple[int, ...], tuple[int, str]]:
        return trial.batches, min((_place(plan, fault) for fault in trial.faults), default=(-1, ""))

    return {trial.number: trial for trial in sorted(trials, key=place)}


def _place(plan: Plan, fault: Fault) -> tuple[int, str]:
    """Layer (-1 outside the layers) and name of what a fault strikes."""
    site = fault.site
    layer = site_of(fault, plan.model.components).layer
    return -1 if layer is None else layer, site.parameter if isinstance(
        site, WeightSite | StoredWordSite | ScatteredWeights
    ) else site.module
