"""Running a capturing script: what it leaves when it works, and what is said when it crashes, hangs or lacks a package.

The scripts here stand in for an engine's; they are run by this interpreter.
"""

import sys
import time
from pathlib import Path
from shutil import copy

import pytest

from aftershock.capture import CaptureRequest, capture, capturing, engine_model, engine_python, read_bundle
from aftershock.errors import InputError
from tiny_gguf import write_gguf
from tiny_models import save_tiny

PREAMBLE = """
import os, sys, time
from pathlib import Path
import numpy as np
from assembly import assemble
from wire import Recorder, Row, Value, Words, read_request

asked = read_request(sys.argv[1])
recorder = Recorder(sys.argv[2], asked)
recorder.header("fake", "1", {}, [])

def step(first, count):
    recorder.begin([Row(0, first + n, 5 + n, first + n) for n in range(count)])
    recorder.put(Value("layer"), Words("F32", np.ones((count, 2), "f4")))

print("running", flush=True)
step(0, 2)
"""

FINISH = """
recorder.finish([{"text": "x", "prompt": [5, 6], "sampled": [9]}])
assemble(Path(sys.argv[2]))
"""

REQUEST = CaptureRequest(model="a model", prompts=("x",))


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder in the place of that of the capturing scripts; returns what writes the script of vllm."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in ("wire.py", "assembly.py"):
        copy(capturing._SCRIPTS / name, folder)
    monkeypatch.setattr(capturing, "_SCRIPTS", folder)

    def write(code: str) -> None:
        (folder / "vllm_engine.py").write_text(PREAMBLE + code)

    return write


def run(folder: Path, seconds: float = 60.0):
    return capture("vllm", REQUEST, folder, Path(sys.executable), seconds)


def refused(folder: Path, seconds: float = 60.0) -> str:
    with pytest.raises(InputError) as caught:
        run(folder, seconds)
    assert "\n" not in str(caught.value)
    assert not folder.exists()
    return str(caught.value)


def test_a_script_that_works_leaves_a_bundle_and_its_log(scripts, tmp_path):
    scripts(FINISH)
    told = []
    bundle = capture("vllm", REQUEST, tmp_path / "out", Path(sys.executable), progress=told.append)
    assert bundle.manifest.requests[0].sampled == (9,)
    assert (tmp_path / "out" / "log.txt").read_text() == "running\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scripts"]
    assert "capturing with vllm" in told[0]


def test_a_crash_keeps_what_was_computed(scripts, tmp_path):
    scripts("step(2, 1)\nstep(3, 1)\nos.abort()\n")
    said = refused(tmp_path / "out")
    assert "was ended by SIGABRT" in said
    assert "out.unfinished/log.txt" in said
    partial = read_bundle(tmp_path / "out.unfinished" / "bundle").manifest
    assert not partial.complete
    assert partial.requests[0].tokens == (5, 6, 5)


def test_an_exception_is_told_by_its_last_lines(scripts, tmp_path):
    scripts("raise ValueError('no such kernel')\n")
    said = refused(tmp_path / "out")
    assert "failed with exit code 1" in said
    assert "last said: ValueError: no such kernel (its log" in said


def test_an_exception_of_several_lines_is_told_with_its_reason(scripts, tmp_path):
    scripts("raise ValueError('1 validation error\\n  the length 2048 is too large\\n    see the page\\n  more')\n")
    said = refused(tmp_path / "out")
    assert "last said: ValueError: 1 validation error | the length 2048 is too large | see the page (its log" in said


def test_a_bundle_that_is_not_sound_never_has_the_final_name(scripts, tmp_path):
    scripts("recorder.finish([])\nPath(sys.argv[2], 'manifest.json').write_text('{')\n")
    for _ in range(2):
        said = refused(tmp_path / "out")
        assert "vllm wrote no sound bundle: " in said
        assert "is no JSON" in said
        assert "(its log is" in said
    scripts(FINISH)
    assert run(tmp_path / "out").manifest.complete


def test_a_hang_is_ended_with_all_that_it_started(scripts, tmp_path):
    scripts(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "Path(sys.argv[1]).with_name('child').write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    said = refused(tmp_path / "out", seconds=8)
    assert "took longer than 8 s, and last said: running" in said
    child = int((tmp_path / "out.unfinished" / "child").read_text())
    for _ in range(100):
        if not running(child):
            break
        time.sleep(0.1)
    assert not running(child)


def running(process: int) -> bool:
    """Whether a process still computes: one that has ended may wait to be buried."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import vllm_is_not_here\n", "lacks the package vllm_is_not_here"),
        ("raise ModuleNotFoundError(\"No module named 'vllm.v2'\")\n", "is not installed in the environment of"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(scripts, tmp_path, code, sentence):
    scripts(code)
    said = refused(tmp_path / "out")
    assert sentence in said
    assert "make engines-vllm" in said


@pytest.mark.parametrize(
    "code", ["os.kill(os.getpid(), 9)\n", "raise MemoryError\n", "print('CUDA Out of memory'); 1/0\n"]
)
def test_memory_that_runs_out_is_told(scripts, tmp_path, code):
    scripts(code)
    said = refused(tmp_path / "out")
    assert "ran out of memory" in said
    assert "give shorter prompts, or fewer" in said


def test_a_script_that_ends_without_a_bundle_is_a_failure(scripts, tmp_path):
    scripts("sys.exit(0)\n")
    assert "failed with exit code 0 and last said: running" in refused(tmp_path / "out")


def test_what_failed_before_makes_way(scripts, tmp_path):
    scripts("1/0\n")
    refused(tmp_path / "out")
    scripts(FINISH)
    assert run(tmp_path / "out").manifest.complete
    assert not (tmp_path / "out.unfinished").exists()


def test_a_folder_that_exists_is_left_alone(scripts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(InputError, match=r"exists already: choose another folder \(-o\)"):
        run(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_an_unfinished_folder_of_somebody_else_is_left_alone(scripts, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "file").write_text("mine")
    with pytest.raises(InputError, match="can't capture into"):
        run(tmp_path / "out")
    assert (tmp_path / "out.unfinished" / "file").read_text() == "mine"


def test_an_interpreter_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"nowhere can't capture"):
        capture("vllm", REQUEST, tmp_path / "out", Path("/nowhere"))


def test_environments_are_looked_up_where_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERSHOCK_ENGINES", str(tmp_path))
    with pytest.raises(InputError, match="make engines-vllm"):
        engine_python("vllm")
    python = tmp_path / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert engine_python("vllm") == python
    assert engine_python("transformers") == Path(sys.executable)
    with pytest.raises(InputError, match="engine sglang is not known"):
        engine_python("sglang")


def test_engines_take_models_as_they_read_them(tmp_path):
    save_tiny(tmp_path / "folder", "llama")
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "model.onnx").touch()
    assert engine_model("vllm", str(tmp_path / "folder")) == tmp_path / "folder"
    assert engine_model("llamacpp", str(tmp_path / "tiny.gguf")) == tmp_path / "tiny.gguf"
    assert engine_model("openvino", str(tmp_path / "graph")) == tmp_path / "graph"
    assert engine_model("onnxruntime", str(tmp_path / "graph" / "model.onnx")) == tmp_path / "graph" / "model.onnx"
    with pytest.raises(InputError, match=r"is no \.gguf file"):
        engine_model("llamacpp", str(tmp_path / "folder"))
    with pytest.raises(InputError, match=r"holds no config\.json"):
        engine_model("vllm", str(tmp_path / "graph"))
