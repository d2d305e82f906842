"""Protections that follow a generation pass by pass, on texts that the model writes token by token under a fault."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from aftershock.faults import Fault
from aftershock.protect import protect
from aftershock.replay import Batch, ModelCrashedError, ReferenceExecutor
from aftershock.study import SDC, Trial
from aftershock.tasks import Answer, RowResult, classify, judge
from benchmarks.protect_parts import Drawn
from benchmarks.protect_schemes import generation_schemes
from benchmarks.recorded import Lines


@dataclass(frozen=True)
class Writing:
    """One way of writing: an executor of a model, protected or not, and the plain model's clean answers by batch."""

    executor: ReferenceExecutor
    clean: Mapping[int, tuple[Answer, ...]]

    def outcomes(self, batch: Batch, faults: Sequence[Fault]) -> list[str]:
        """What became of each text of a batch under faults."""
        try:
            found = answers(self.executor, batch, faults)
        except ModelCrashedError:
            return ["crash"] * len(batch.items)
        own = zip(batch.items, self.clean[batch.number], found, strict=True)
        return [classify(item, clean, answer) for item, clean, answer in own]


def answers(executor: ReferenceExecutor, batch: Batch, faults: Sequence[Fault] = ()) -> tuple[Answer, ...]:
    """What is written for each item of a batch."""
    written = executor.decoded(batch, faults)
    return tuple(
        judge(item, (RowResult(tokens, (), finite),), executor.model.tokenizer)
        for item, tokens, finite in zip(batch.items, written.tokens, written.finite, strict=True)
    )


def share(outcomes: Sequence[str], clean: Sequence[Answer]) -> float | None:
    """The share of the texts that golden has right, or that have no right answer, which are silently wrong."""
    counted = [one in SDC for one, answer in zip(outcomes, clean, strict=True) if answer.right is not False]
    return sum(counted) / len(counted) if counted else None


def run_generations(
    drawn: Drawn,
    bounds: Mapping[str, tuple[float, float]],
    wanted: int,
    part_of: tuple[int, int],
    lines: Lines,
    check: Callable[[], None],
) -> None:
    """Trials on texts until `wanted` did harm (the i-th of every n for a share (i, n) of them), and those under each
    scheme; clean texts under each, too."""
    plan, name = drawn.plan, drawn.part.name
    plain = ReferenceExecutor(plan.model)
    clean = {batch.number: answers(plain, batch) for batch in plan.batches}

    def record(writing: Writing, scheme: str, trial: Trial) -> dict[str, Any]:
        key = {"part": name, "scheme": scheme, "trial": trial.number}

        def made() -> dict[str, Any]:
            check()
            (number,) = trial.batches
            outcomes = writing.outcomes(plan.batches[number], trial.faults)
            return {
                "fault": str(trial.faults[0]),
                "sdc": share(outcomes, clean[number]),
                "outcomes": outcomes,
                "ran": True,
            }

        return lines.get(key, made)

    harmful: list[Trial] = []
    for number in count(*part_of):
        if len(harmful) >= wanted / part_of[1]:
            break
        trial = drawn.trial(number)
        if record(Writing(plain, clean), "none", trial)["sdc"]:
            harmful.append(trial)
    for scheme, protections in generation_schemes(bounds).items():
        with protect(plan.model, protections) as protected:
            writing = Writing(ReferenceExecutor(protected.model), clean)
            if (key := {"part": name, "scheme": f"clean, {scheme}", "trial": 0}) not in lines:
                others = changed(writing.executor, plan.batches, clean)
                lines.put({**key, "changed": others, "texts": sum(map(len, clean.values()))})
            for trial in harmful:
                record(writing, scheme, trial)


def changed(executor: ReferenceExecutor, batches: Sequence[Batch], clean: Mapping[int, tuple[Answer, ...]]) -> int:
    """How many clean texts a protected model writes otherwise."""
    return sum(
        one.tokens != other.tokens
        for batch in batches
        for one, other in zip(answers(executor, batch), clean[batch.number], strict=True)
    )
