"""What a worker in another process or on another machine does: make the same plan, work on what it is given."""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from aftershock.errors import ContractError, InputError
from aftershock.replay import FastExecutor, ReferenceExecutor
from aftershock.study.crew import Alone
from aftershock.study.plan import Plan, Trial, check_unchanged, make_plan
from aftershock.study.records import Environment, GeneratedTrial, NoiseRecord, TrialRecord
from aftershock.study.settings import StudySettings
from aftershock.tasks import absolute_spec

ExecutorName = Literal["fast", "reference"]
Duty = Literal["trials", "audits", "generated", "noise", "check"]
"""What a crew has to do, and `check`: compare the model's hash with the plan's."""

Task = Trial | int
"""A trial, or the number of a perturbation."""


@dataclass(frozen=True)
class Orders:
    """What a worker makes its plan from, and what that plan must be."""

    settings: StudySettings
    digest: str
    environment: Environment
    executor: ExecutorName


@dataclass(frozen=True)
class Result:
    """The record of one task, by its number."""

    number: int
    record: TrialRecord | GeneratedTrial | NoiseRecord


@dataclass(frozen=True)
class Free:
    """The worker has done what it was given, or has loaded its model, and takes more."""


@dataclass(frozen=True)
class Failed:
    """An error that another worker would meet too."""

    error: Exception


@dataclass(frozen=True)
class Lost:
    """The worker is gone, or its machine failed it: what it has not given is to be done by another."""

    reason: str


Message = Result | Free | Failed | Lost


class WorkerError(RuntimeError):
    """An internal error in a worker; the message is its traceback."""


def orders_of(plan: Plan, executor: ExecutorName) -> Orders:
    """Orders for workers that see the same files; places on this machine are made absolute."""
    model, task = plan.settings.model, plan.settings.task
    places = {"spec": absolute_spec(task.spec)}
    if task.shots_from is not None:
        places["shots_from"] = _absolute(task.shots_from)
    settings = plan.settings.model_copy(
        update={
            "model": model.model_copy(update={"spec": _absolute(model.spec)}),
            "task": task.model_copy(update=places),
        }
    )
    return Orders(settings, plan.digest, plan.environment, executor)


def _absolute(spec: str) -> str:
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.exists() else spec


class Worker:
    """Loads the model on `load`, then works on tasks. Both tell what happens as messages, the last one Free, Failed or
    Lost."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def load(self) -> Iterator[Message]:
        """Make the plan; it fails where that is not the plan of the orders."""
        yield from _told(self._load())

    def work(self, duty: Duty, tasks: Sequence[Task]) -> Iterator[Message]:
        """Work on tasks, each result as soon as it is there."""
        yield from _told(self._results(duty, tasks))

    def _load(self) -> Iterator[Result]:
        plan = make_plan(self._orders.settings)
        if plan.digest != self._orders.digest:
            raise InputError(_difference(self._orders.environment, plan.environment))
        executors = {"fast": FastExecutor, "reference": ReferenceExecutor}
        self._plan, self._here = plan, Alone(plan, executors[self._orders.executor](plan.model))
        yield from ()

    def _results(self, duty: Duty, tasks: Sequence[Task]) -> Iterator[Result]:
        match duty:
            case "trials":
                yield from (Result(one.trial, one) for one in self._here.trials(cast(Sequence[Trial], tasks)))
            case "audits":
                yield from (Result(one.trial, one) for one in self._here.audits(cast(Sequence[Trial], tasks)))
            case "generated":
                yield from (Result(one.trial, one) for one in self._here.generated(cast(Sequence[Trial], tasks)))
            case "noise":
                yield from (Result(*one) for one in self._here.noise(cast(Sequence[int], tasks)))
            case "check":
                check_unchanged(self._plan)


def _told(results: Iterator[Result]) -> Iterator[Message]:
    try:
        yield from results
    except (InputError, ContractError) as error:
        yield Failed(error)
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError) as error:
        yield Lost(f"{type(error).__name__}: {error}".partition("\n")[0])
    except Exception:
        yield Failed(WorkerError(traceback.format_exc()))
    else:
        yield Free()


def _difference(wanted: Environment, found: Environment) -> str:
    """What differs between this process's plan and the one that workers are to run."""
    mine, theirs = found.model_dump(exclude={"model"}), wanted.model_dump(exclude={"model"})
    fields = [
        f"{name} {str(mine[name])[:200]} in place of {str(value)[:200]}"
        for name, value in theirs.items()
        if mine[name] != value
    ]
    return (
        f"a worker would run another study: {'; '.join(fields) or 'the configuration or the task differs'}; give every "
        "worker the same model files, task file, library versions and device"
    )
