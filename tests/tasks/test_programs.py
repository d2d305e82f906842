"""Programs that want to do harm can't, where the machine isolates; where it doesn't, they are refused."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aftershock.errors import ContractError, InputError
from aftershock.tasks import Asking, load_task, programs
from aftershock.tasks.launcher import NOT_RUN, PASSED
from aftershock.tasks.programs import FAILED, attempt, isolation_gap, passes
from sandboxed import needs_sandbox

TASK = '{"id": "add-0", "prompt": "Add.", "answer": "def f(): return 1", "tests": ["assert f() == 1"]}\n'


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@needs_sandbox
def test_right_programs_pass_and_wrong_ones_fail():
    assert passes("import math\nassert math.factorial(3) == 6", False)
    assert not passes("assert 1 == 2", False)
    assert not passes("def f(:", False)


@needs_sandbox
@pytest.mark.parametrize("source", ["exit(0)", "import os\nos._exit(0)", "raise SystemExit", "quit()", "input()"])
def test_a_program_that_ends_before_its_tests_fails(source):
    assert not passes(f"{source}\nassert True", False)


@needs_sandbox
@pytest.mark.parametrize(
    "harm",
    [
        "assert 'SECRET' in os.environ",
        "open('/proc/PARENT/environ').read()",
        "open('/proc/self/environ').read()",
        "os.fork()",
        "import threading\nthreading.Thread(target=print).start()",
        "import subprocess\nsubprocess.run(['true'])",
        "os.setuid(0)",
        "ctypes.CDLL(None).unshare(0x10000000) == 0 or exit()",
        "ctypes.CDLL(None).mount(b'none', b'/program', b'tmpfs', 0, None) == 0 or exit()",
        "os.kill(PARENT, 0)",
        "bytearray(10 << 30)",
        "open('large', 'wb').write(bytes(20 << 20))",
        "[open(f'{n}', 'wb').write(bytes(1 << 20)) for n in range(40)]",
        "[open(f'{n}', 'w').close() for n in range(5000)]",
        "open('/written', 'w')",
        "open('/tmp/written', 'w')",
        "open('../written', 'w')",
        f"open({os.__file__!r}, 'r+')",
        "while True: os.fork()",
    ],
)
def test_harm_fails(harm, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    harm = harm.replace("PARENT", str(os.getpid()))
    assert attempt(f"import ctypes, os\n{harm}", "isolated") == (FAILED, "")


@needs_sandbox
def test_nothing_is_written_outside(tmp_path):
    assert not passes(f"open({str(tmp_path / 'written')!r}, 'w').write('x')", False)
    assert not passes(f"import os\nos.remove({__file__!r})", False)
    assert list(tmp_path.iterdir()) == []
    assert Path(__file__).exists()


@needs_sandbox
def test_no_socket_is_reached(server):
    port = server.getsockname()[1]
    assert not passes(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)", False)
    with pytest.raises(BlockingIOError):
        server.accept()
    with socket.socket(socket.AF_UNIX) as local:
        name = f"\0aftershock-{os.getpid()}"
        local.bind(name)
        local.listen()
        assert not passes(f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})", False)


@needs_sandbox
def test_a_program_has_an_empty_home_and_can_use_it():
    home = "import os, tempfile\nassert os.listdir() == [] and os.environ['HOME'] == os.getcwd()\n"
    assert passes(f"{home}tempfile.TemporaryFile().write(b'x')\nopen('kept', 'w').write('x')", False)
    assert passes(f"{home}assert True", False)


@needs_sandbox
def test_an_endless_loop_ends():
    assert not passes("while True: pass", False)


@needs_sandbox
def test_waiting_ends(monkeypatch):
    monkeypatch.setattr(programs, "WALL_SECONDS", 1)
    assert attempt("import time\ntime.sleep(1000)", "isolated")[0] is None


@needs_sandbox
def test_output_goes_nowhere():
    assert attempt(
        "import sys\nfor _ in range(10_000): print('x' * 10_000); print('y' * 10_000, file=sys.stderr)", "isolated"
    ) == (PASSED, "")


@needs_sandbox
def test_chance_and_the_order_of_sets_are_the_same_in_every_run():
    command = [sys.executable, "-S", "-c", "print(hash('word'))"]
    told = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True).stdout
    assert passes(f"assert hash('word') == {told}", False)
    assert not passes("import random\nassert random.random() < 0.84", False)
    assert passes("import random\nassert 0.84 < random.random() < 0.85", False)


@pytest.mark.parametrize("harm", ["bytearray(10 << 30)", "open('large', 'wb').write(bytes(20 << 20))", "exit(0)"])
def test_limits_hold_without_isolation(harm):
    assert attempt("open('kept', 'w').write('x')", "limited")[0] == PASSED
    assert attempt(harm, "limited")[0] == FAILED


def test_equal_programs_are_run_once(monkeypatch):
    ran = []
    monkeypatch.setattr(programs, "isolation_gap", lambda: None)
    monkeypatch.setattr(programs, "attempt", lambda source, sandbox: (ran.append(source), (PASSED, ""))[1])
    assert passes("'run once'", False)
    assert passes("'run once'", False)
    assert ran == ["'run once'"]


def test_a_program_that_could_not_be_run_is_no_wrong_one(monkeypatch):
    monkeypatch.setattr(programs, "isolation_gap", lambda: None)
    monkeypatch.setattr(programs, "attempt", lambda source, sandbox: (NOT_RUN, "out of mounts"))
    with pytest.raises(ContractError, match="out of mounts"):
        passes("'not run'", False)


@needs_sandbox
def test_the_probe_sees_what_a_sandbox_lets_through(monkeypatch):
    monkeypatch.setattr(programs, "attempt", lambda source, sandbox: attempt(source, "limited"))
    assert isolation_gap.__wrapped__() == "programs reach the network"


def test_a_machine_without_isolation_refuses_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "attempt", lambda source, sandbox: attempt(source, "limited"))
    monkeypatch.setattr(programs, "isolation_gap", isolation_gap.__wrapped__)
    path = tmp_path / "code.jsonl"
    path.write_text(TASK, encoding="utf-8")
    with pytest.raises(InputError, match=r"can't isolate.*reach the network.*--unsafe-code") as error:
        load_task(str(path))
    assert "\n" not in str(error.value)
    (item,) = load_task(str(path), asking=Asking(unsafe_code=True)).items
    assert item.program is not None
    assert item.program.unsafe
    assert passes("'allowed'", True)
    with pytest.raises(InputError, match="--unsafe-code"):
        passes("'not allowed'", False)


def test_a_machine_that_runs_no_program_refuses_in_any_case(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "attempt", lambda source, sandbox: (NOT_RUN, "no Python"))
    monkeypatch.setattr(programs, "isolation_gap", isolation_gap.__wrapped__)
    path = tmp_path / "code.jsonl"
    path.write_text(TASK, encoding="utf-8")
    with pytest.raises(InputError, match=r"runs none \(no Python\)"):
        load_task(str(path), asking=Asking(unsafe_code=True))


def test_unsafe_code_changes_nothing_for_tasks_without_programs():
    assert load_task("probe", asking=Asking(unsafe_code=True)) == load_task("probe")
