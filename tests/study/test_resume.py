"""`kill -9` at any moment loses at most the trial in flight."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

from aftershock.study import make_plan, run_study, to_toml
from tiny_study import tiny_settings


def _stored(path) -> int:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    settings = tiny_settings(tmp_path, run={"trials": 30})
    file, out = tmp_path / "study.toml", tmp_path / "killed"
    file.write_text(to_toml(settings), encoding="utf-8")
    command = [sys.executable, "-m", "aftershock.cli", "study", str(file), "--out", str(out)]
    killed_at = []
    for attempt, wanted in enumerate((3, 10)):
        process = subprocess.Popen(
            [*command, *(["--resume"] if attempt else [])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while _stored(out / "study.sqlite") < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(_stored(out / "study.sqlite"))
    assert 3 <= killed_at[0] <= killed_at[1]
    resumed = run_study(make_plan(settings), out, resume=True)
    whole = run_study(make_plan(settings), tmp_path / "whole")
    assert resumed.complete
    assert resumed.records_digest == whole.records_digest
