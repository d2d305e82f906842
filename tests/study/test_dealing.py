"""Work dealt out: every task's result once, whatever becomes of the workers; errors that say which tasks."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftershock.errors import ContractError, InputError
from aftershock.study import make_plan, run_study
from aftershock.study.dealing import LOSSES, Dealt, grouped, parts
from aftershock.study.worker import Failed, Free, Lost, Message, Result, Worker, orders_of
from inline_team import LOSS, Inline
from tiny_study import tiny_settings

pytestmark = pytest.mark.workers

PLAN = SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu")), used_batches=(0, 1, 2))


class Numbers:
    """A worker whose record of a task is its number."""

    def load(self) -> Iterator[Message]:
        yield Free()

    def work(self, duty, tasks) -> Iterator[Message]:
        yield from (Result(task, task) for task in tasks)
        yield Free()


def dealt(team, numbers):
    with Dealt(PLAN, team) as crew:
        yield from crew.noise(numbers)


@given(st.integers(0, 5000), st.integers(1, 40), st.integers(1, 600))
def test_parts_cover_everything_in_shares_that_never_grow(count, workers, largest):
    slices = list(parts(count, workers, largest))
    assert [number for part in slices for number in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size <= largest for size in sizes)
    assert sizes[-workers:] == [1] * min(workers, count)


@given(st.integers(0, 90), st.integers(1, 5), st.lists(st.integers(LOSS, 9), min_size=1, max_size=30))
def test_every_task_has_its_result_once_whoever_is_lost(count, size, script):
    team = Inline(Numbers, size, [0, *script])
    if script.count(LOSS) < LOSSES:
        assert sorted(dealt(team, range(count))) == [(number, number) for number in range(count)]
    else:
        with suppress(InputError):
            assert sorted(dealt(team, range(count))) == [(number, number) for number in range(count)]
    assert team.dismissed


def test_a_lost_workers_tasks_go_to_another():
    # Both begin, one is lost after some results, and its place is filled.
    team = Inline(Numbers, 2, [0, 1, 0, 0, LOSS, 1])
    assert sorted(dealt(team, range(20))) == [(number, number) for number in range(20)]
    assert len(team.hired) == 3
    tasks = [task for _, duty, some in team.given for task in some if duty == "noise"]
    assert len(tasks) > len(set(tasks)) == 20


def test_what_loses_every_worker_ends_with_one_error_that_names_the_trials():
    class Poisoned(Numbers):
        def work(self, duty, tasks):
            for task in tasks:
                yield Lost("Killed") if task == 7 else Result(task, task)
            yield Free()

    found = []
    with pytest.raises(InputError, match=r"lost at perturbations ([\d, ]*\b)?7\b.*Killed.*--resume"):
        found.extend(dealt(Inline(Poisoned, 1), range(9)))


def test_a_worker_lost_when_all_was_done_costs_nothing():
    class Leaving(Numbers):
        def work(self, duty, tasks):
            yield from (Result(task, task) for task in tasks)
            yield Lost("gone home") if len(tasks) == 1 else Free()

    assert len(list(dealt(Inline(Leaving, 4), range(40)))) == 40


def test_workers_that_never_begin_end_with_one_error():
    with pytest.raises(InputError, match=r"lost before they can begin \(its time had come\)"):
        list(dealt(Inline(Numbers, 3, [LOSS, LOSS, LOSS]), range(9)))


@pytest.mark.parametrize("error", [InputError("no such file"), ContractError("it did not fire"), RuntimeError("bug")])
def test_an_error_in_a_worker_is_the_studys(error):
    class Failing(Numbers):
        def work(self, duty, tasks):
            yield Failed(error)

    team = Inline(Failing, 2)
    with pytest.raises(type(error), match=str(error)):
        list(dealt(team, range(9)))
    assert team.dismissed


def test_every_worker_checks_its_model_in_the_end():
    class Changed(Numbers):
        def work(self, duty, tasks):
            yield from [Failed(ContractError("an undo failed"))] if duty == "check" else super().work(duty, tasks)

    team = Inline(Changed, 3, [0, 1, 2])
    with pytest.raises(ContractError, match="an undo failed"):
        list(dealt(team, range(30)))
    assert [duty for _, duty, _ in team.given].count("check") == 3
    assert team.dismissed


def test_a_worker_that_leaves_a_task_out_is_found_out():
    class Forgetful(Numbers):
        def work(self, duty, tasks):
            yield Free()

    with pytest.raises(ContractError, match="left perturbations 0, 3 without a result"):
        list(dealt(Inline(Forgetful, 1), [0, 1, 3]))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan(tiny_settings(tmp_path_factory.mktemp("tiny"), run={"trials": 30, "check_every": 4}))


def test_trials_that_share_batches_layer_and_site_are_side_by_side(plan):
    trials = [plan.trial(number) for number in range(300)]
    ordered = list(grouped(plan, trials).values())
    assert sorted(trial.number for trial in ordered) == list(range(300))
    kinds = [(trial.batches, str(trial.faults[0].site).partition("[")[0]) for trial in ordered]
    changes = sum(one != other for one, other in pairwise(kinds))
    assert changes == len(set(kinds)) - 1


def test_a_study_by_workers_that_come_and_go_is_the_study_of_one_process(plan, tmp_path):
    whole = run_study(plan, tmp_path / "whole")
    team = Inline(lambda: Worker(orders_of(plan, "fast")), 3, [0, 1, 2, 1, 0, 2, 5, 7, 3, LOSS, 4, 1])
    study = run_study(plan, tmp_path / "dealt", crew=Dealt(plan, team))
    assert len(team.hired) > 3
    assert study.records_digest == whole.records_digest
    assert study.audits == whole.audits
    assert study.generated == whole.generated != ()
    assert len(study.audits) == 20
    assert all(study.audits.values())


def test_ctrl_c_leaves_a_store_that_can_be_resumed(plan, tmp_path):
    def interrupt(progress):
        if progress.phase == "trials" and progress.done == 5:
            raise KeyboardInterrupt

    def team():
        return Inline(lambda: Worker(orders_of(plan, "fast")), 2, [0, 1, 3])

    interrupted = team()
    with pytest.raises(KeyboardInterrupt):
        run_study(plan, tmp_path / "study", watch=interrupt, crew=Dealt(plan, interrupted))
    assert interrupted.dismissed
    resumed = run_study(plan, tmp_path / "study", resume=True, crew=Dealt(plan, team()))
    assert resumed.complete
    assert resumed.records_digest == run_study(plan, tmp_path / "whole").records_digest
