"""Workers as processes: one killed in mid-study, and the same records."""

import os
import signal

import pytest

from aftershock.study import make_plan, process_crew, run_study
from aftershock.study.dealing import Dealt
from aftershock.study.processes import Processes
from aftershock.study.worker import Lost, orders_of
from tiny_study import tiny_settings
from watched_team import Watched

pytestmark = pytest.mark.workers


class WatchedProcesses(Watched, Processes):
    def kill(self, place):
        os.kill(self._employed[place].process.pid, signal.SIGKILL)


def test_a_killed_worker_changes_no_record(tmp_path):
    plan = make_plan(tiny_settings(tmp_path, run={"trials": 60, "noise": 2}))
    whole = run_study(plan, tmp_path / "whole")
    team = WatchedProcesses(orders_of(plan, "fast"), 2)
    pids = []

    def watch(progress):
        if (progress.phase, progress.done) == ("trials", 3):
            pids.extend(one.process.pid for one in team._employed.values())
            team.kill(1)

    study = run_study(plan, tmp_path / "killed", watch=watch, crew=Dealt(plan, team))
    assert team.lost == [Lost(f"its process ended with {-signal.SIGKILL}")]
    assert study.complete
    assert study.records_digest == whole.records_digest
    assert study.audits == whole.audits
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_more_threads_than_cores_are_noted(tmp_path):
    plan = make_plan(tiny_settings(tmp_path))
    said = []
    process_crew(plan, 1, say=said.append)
    assert not said
    process_crew(plan, 500, say=said.append)
    assert "note: 500 workers x 1 threads on " in said[0]
