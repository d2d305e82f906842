"""Who runs the work of a study: this process here, workers elsewhere in `dealing`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from aftershock.replay import Executor, ReferenceExecutor
from aftershock.study.generated import generated_trial
from aftershock.study.noise import noise_record
from aftershock.study.plan import Plan, Trial, check_unchanged
from aftershock.study.records import GeneratedTrial, NoiseRecord, TrialRecord
from aftershock.study.trial import trial_records


class Crew(Protocol):
    """Runs the work of one plan, block after block. Every method takes one block and yields its records in any order,
    each as soon as it is there; read it to its end before the next.

    Leave it as a context manager: after work that was done, every model is checked to be the one that was loaded.
    """

    def trials(self, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
        """Trials by the study's executor."""
        ...

    def audits(self, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
        """Trials by the reference executor, not traced."""
        ...

    def generated(self, trials: Iterable[Trial]) -> Iterator[GeneratedTrial]:
        """Trials by plain `generate`."""
        ...

    def noise(self, numbers: Iterable[int]) -> Iterator[tuple[int, NoiseRecord]]:
        """Perturbations of the noise floor, by number."""
        ...

    def __enter__(self) -> "Crew": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Alone:
    """This process, on the plan's own model; its hash is checked every so many trials, and at the end."""

    def __init__(self, plan: Plan, executor: Executor) -> None:
        self._plan, self._executor = plan, executor
        self._reference = ReferenceExecutor(plan.model)
        self._finished = 0

    def __enter__(self) -> "Alone":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        check_unchanged(self._plan)

    def trials(self, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
        """Trials by the study's executor."""
        for record in trial_records(self._executor, self._plan, trials):
            yield record
            self._finished += 1
            if self._finished % self._plan.settings.run.check_every == 0:
                check_unchanged(self._plan)

    def audits(self, trials: Iterable[Trial]) -> Iterator[TrialRecord]:
        """Trials by the reference executor, not traced."""
        return trial_records(self._reference, self._plan, (replace(trial, traced=False) for trial in trials))

    def generated(self, trials: Iterable[Trial]) -> Iterator[GeneratedTrial]:
        """Trials by plain `generate`."""
        for trial in trials:
            yield generated_trial(self._reference, self._plan, trial)

    def noise(self, numbers: Iterable[int]) -> Iterator[tuple[int, NoiseRecord]]:
        """Perturbations of the noise floor, by number."""
        for number in numbers:
            yield number, noise_record(self._plan, self._executor, number)
