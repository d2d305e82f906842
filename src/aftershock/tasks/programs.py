"""Programs that a model wrote: run where they can do nothing, after a proof that they can't."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from aftershock.errors import ContractError, InputError
from aftershock.tasks import launcher
from aftershock.tasks.launcher import NOT_RUN, PASSED

WALL_SECONDS = 120
"""Time that a program gets, its limit of CPU time aside: generous, since a busy machine is no reason to fail."""

FAILED = 1
"""Exit status of a program that ended in an exception."""

KEPT = 1 << 14
"""Programs whose results are kept: most faults change no answer, so equal programs are frequent."""

Sandbox = Literal["isolated", "limited"]


@lru_cache(KEPT)
def passes(source: str, unsafe: bool) -> bool:
    """Whether a Python program runs to its end: without an exception, and within the limits of `launcher`.

    It runs isolated, or, where the machine can't do that and `unsafe` allows it, under the limits alone. Equal programs
    are run once a process; every run has the same seed and order of sets.

    Raises InputError where it may not be run, ContractError when it could not be started.
    """
    gap = isolation_gap()
    if gap is not None and not unsafe:
        raise InputError(_refusal("a program", gap))
    status, reason = attempt(source, "isolated" if gap is None else "limited")
    if status == NOT_RUN:
        raise ContractError(f"a program to be judged could not be run ({reason})")
    return status == PASSED


def check_sandbox(name: str, unsafe: bool) -> None:
    """Raises InputError where programs of the task `name` can't be run as they have to be."""
    gap = isolation_gap()
    if gap is None:
        return
    if not unsafe:
        raise InputError(_refusal(name, gap))
    status, reason = attempt("pass", "limited")
    if status != PASSED:
        raise InputError(f"{name} needs programs to be run, and this machine runs none ({reason}): choose another task")


@cache
def isolation_gap() -> str | None:
    """Why programs can't be isolated on this machine; None where they can, as harmless attempts at each harm prove."""
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        status, reason = attempt("pass", "isolated")
        if status != PASSED:
            return reason or "Python does not start in the sandbox"
        harms = _harms(Path(folder), server.getsockname()[1])
        return next((harm for harm, source in harms if attempt(source, "isolated")[0] != FAILED), None)


def attempt(source: str, sandbox: Sandbox) -> tuple[int | None, str]:
    """Exit status of a program, None when its time was up, and the last line of what went wrong with the sandbox."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(launcher.__file__), folder, sandbox],
                input=source.encode(errors="replace"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={},
                start_new_session=True,
                timeout=WALL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return None, "no answer in time"
    return done.returncode, done.stderr.decode(errors="replace").strip().rpartition("\n")[2]


def _harms(folder: Path, port: int) -> Iterator[tuple[str, str]]:
    """What a program must not be able to do, and a program that passes if it can. `folder` is outside of the sandbox,
    at `port` somebody listens on the loopback address."""
    yield "programs reach the network", f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
    yield "programs write outside their folder", f"open({str(folder / 'written')!r}, 'w')"
    yield "programs write to Python's own files", f"open({os.__file__!r}, 'r+')"
    yield "programs see this process's environment", f"open('/proc/{os.getpid()}/environ', 'rb').read()"
    own = {"HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUTF8", "LC_CTYPE"}
    yield "programs inherit variables", f"import os\nassert set(os.environ) - {own!r}"
    yield "programs start others", "import os\nos.fork()"


def _refusal(name: str, gap: str) -> str:
    return (
        f"{name} is judged by running what the model writes, which this machine can't isolate ({gap}): use a Linux "
        "machine that allows user namespaces, or accept limits alone with --unsafe-code (unsafe_code = true)"
    )
