"""Repeat one stored trial and say whether it equals its record."""

from dataclasses import replace
from pathlib import Path

from pydantic import computed_field

from aftershock.errors import InputError
from aftershock.replay import ReferenceExecutor
from aftershock.study.plan import Say, check_unchanged, make_plan
from aftershock.study.records import Record, TrialRecord
from aftershock.study.rounds import next_block
from aftershock.study.store import load_study
from aftershock.study.trial import trial_records


class Replay(Record):
    """A repeated trial: its record as stored and as found now.

    `same_plan` is False where something that decides bits (versions, device, threads, the model itself) is not
    what the study ran with; then a difference means nothing.
    """

    stored: TrialRecord
    found: TrialRecord
    same_plan: bool

    @computed_field  # type: ignore[prop-decorator]  # mypy has no rule for a decorated property
    @property
    def equal(self) -> bool:
        """Whether every field of the result came out the same, the trace apart if the study kept none."""
        found = self.found
        if self.stored.residual_error is None:
            found = found.model_copy(update={"residual_error": None})
        return found.result == self.stored.result


def replay_trial(folder: Path, trial: int, say: Say = lambda _: None) -> Replay:
    """Run trial `trial` of the study in `folder` again, with its error traced through the layers.

    Raises InputError when the store has no such trial.
    """
    study = load_study(folder)
    stored = next((record for record in study.trials if record.trial == trial), None)
    if stored is None:
        raise InputError(
            f"{folder} has no trial {trial}: it holds {len(study.trials)} of the trials 0 to {study.planned - 1}"
        )
    plan = next_block(make_plan(study.settings, say), study.trials).plan
    say(f"repeating trial {trial}")
    (found,) = trial_records(ReferenceExecutor(plan.model), plan, [replace(plan.trial(trial), traced=True)])
    check_unchanged(plan)
    return Replay(stored=stored, found=found, same_plan=plan.digest == study.plan_digest)
