"""Capture what an engine computes: run its script in the engine's own environment, and read the bundle it writes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType

from aftershock.capture.asking import CaptureRequest
from aftershock.capture.bundle import MANIFEST, Bundle, read_bundle
from aftershock.errors import InputError
from aftershock.models import Progress, cache_folder, checkpoint_folder, gguf_file, quiet

LOG = "log.txt"

_SCRIPTS = Path(__file__).parent / "engines"
_TAIL_LINES = 3
_EXCEPTION_LINES = 12
"""Lines at the end of a log among which the exception is looked for that ended the script."""

_EXCEPTION = r"(\[\w+\]: )?[A-Za-z_][\w.]*(Error|Exception)\b"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _Script:
    """A capturing script, and the package whose absence means that the environment is not the engine's."""

    file: str
    package: str


_ENGINES: Mapping[str, _Script] = MappingProxyType(
    {
        "llamacpp": _Script("llamacpp_engine.py", "llama_cpp"),
        "onnxruntime": _Script("onnxruntime_engine.py", "onnxruntime"),
        "openvino": _Script("openvino_engine.py", "openvino"),
        "transformers": _Script("transformers_engine.py", "transformers"),
        "vllm": _Script("vllm_engine.py", "vllm"),
    }
)

ENGINES = tuple(_ENGINES)
"""Engines that can be captured."""


def engine_python(engine: str) -> Path:
    """The interpreter that an engine runs in: this one for transformers, else that of `make engines`, in
    `$AFTERSHOCK_ENGINES` or `engines` in aftershock's cache.

    Raises InputError for an engine that is not known, or has no environment.
    """
    if engine not in _ENGINES:
        raise InputError(f"engine {engine} is not known: choose one of {', '.join(ENGINES)}")
    if engine == "transformers":
        return Path(sys.executable)
    own = os.environ.get("AFTERSHOCK_ENGINES")
    python = (Path(own) if own else cache_folder() / "engines") / engine / "bin" / "python"
    if not python.exists():
        raise InputError(f"{engine} has no environment at {python}: {_mending(engine)}")
    return python


def engine_model(engine: str, spec: str, progress: Progress = quiet) -> Path:
    """The path of a model as an engine takes it: a GGUF file for llama.cpp, a graph or a folder of transformers for
    ONNX Runtime and OpenVINO, such a folder for the others.

    Raises InputError for a model that is missing or that the engine doesn't take.
    """
    path = Path(spec).expanduser()
    if engine in ("onnxruntime", "openvino") and (path.suffix == ".onnx" or (path / "model.onnx").is_file()):
        return path
    if engine != "llamacpp":
        return checkpoint_folder(spec, progress)
    file = gguf_file(spec, progress)
    if file is None:
        raise InputError(f"{spec} is no .gguf file, which llama.cpp takes alone: give one, or demo:NAME")
    return file


def capture(
    engine: str,
    request: CaptureRequest,
    folder: Path,
    python: Path | None = None,
    timeout_seconds: float = 1800.0,
    progress: Progress = quiet,
) -> Bundle:
    """What an engine computes for a request, as a bundle in `folder`, with the engine's own output in `log.txt` there.

    The engine runs in another process, by the interpreter `python` (`engine_python` where it is None). Where it fails,
    the log, and a bundle of the passes that were complete, are left in a folder beside, `NAME.unfinished`.

    Raises InputError for a folder that exists, and where the environment is missing or lacks a package, and where the
    engine crashes, takes longer than `timeout_seconds`, runs out of memory or writes a bundle that can't be read.
    """
    interpreter = engine_python(engine) if python is None else python
    if engine not in _ENGINES:
        raise InputError(f"engine {engine} is not known: choose one of {', '.join(ENGINES)}")
    if folder.exists():
        raise InputError(f"{folder} exists already: choose another folder (-o), or remove that one")
    work = folder.with_name(f"{folder.name}.unfinished")
    log, made = work / LOG, work / "bundle"
    try:
        if (work / LOG).exists():
            rmtree(work)
        made.parent.mkdir(parents=True)
        (work / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
        progress(f"capturing with {engine}; its own words are in {log}")
        code = _run(interpreter, _SCRIPTS / _ENGINES[engine].file, work, request.threads, timeout_seconds)
    except OSError as error:
        raise InputError(
            f"{interpreter} can't capture into {work} ({error}): give another folder or --python"
        ) from error
    if code == 0 and (made / MANIFEST).exists():
        _check(engine, made, log)
        log.rename(made / LOG)
        made.rename(folder)
        rmtree(work)
        return read_bundle(folder)
    kept = _kept(work)
    raise InputError(f"{engine} {_reason(engine, interpreter, code, log, timeout_seconds)} (its log is {log}{kept})")


def _check(engine: str, made: Path, log: Path) -> None:
    """Raise InputError for a bundle that can't be read, before it has its final name."""
    try:
        read_bundle(made)
    except InputError as error:
        raise InputError(f"{engine} wrote no sound bundle: {error} (its log is {log})") from error


def _run(python: Path, script: Path, work: Path, threads: int, timeout_seconds: float) -> int | None:
    """Run a script: its exit code, negative for a signal, None where it took too long. Nothing of it runs on."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}
    command = [str(python), str(script), str(work / "request.json"), str(work / "bundle")]
    with (work / LOG).open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables, start_new_session=True
        )
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a script and of the processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)


def _kept(work: Path) -> str:
    """Make a bundle of the passes that were complete; what to say of it."""
    command = [sys.executable, str(_SCRIPTS / "assembly.py"), str(work / "bundle")]
    if not (work / "bundle" / MANIFEST).exists():
        subprocess.run(command, capture_output=True, check=False)
    return f", what it computed before is {work / 'bundle'}" if (work / "bundle" / MANIFEST).exists() else ""


def _reason(engine: str, python: Path, code: int | None, log: Path, timeout_seconds: float) -> str:
    """What went wrong, by how the script ended and what it said."""
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    tail = " | ".join(_last_words(said)) or "nothing"
    lacking = next(
        (found[1] for line in said[-1:] if (found := re.match(r"ModuleNotFoundError: .*'([\w.]+)'", line))), ""
    )
    if lacking.partition(".")[0] == _ENGINES[engine].package:
        return f"is not installed in the environment of {python}: {_mending(engine)}"
    if lacking:
        return f"lacks the package {lacking} in the environment of {python}: {_mending(engine)}"
    if code is None:
        return (
            f"took longer than {timeout_seconds:g} s, and last said: {tail}: give it longer (--timeout), or less to do"
        )
    if code == -signal.SIGKILL or any("MemoryError" in line or "out of memory" in line.lower() for line in said[-20:]):
        return f"ran out of memory, as it seems, and last said: {tail}: give shorter prompts, or fewer"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return f"{how} and last said: {tail}"


def _last_words(said: Sequence[str]) -> Sequence[str]:
    """The last exception with what it goes on to say, some lines; the last lines of all where there is none."""
    tail = said[-_EXCEPTION_LINES:]
    raised = [place for place, line in enumerate(tail) if re.match(_EXCEPTION, line)]
    return tail[raised[-1] :][:_TAIL_LINES] if raised else tail[-_TAIL_LINES:]


def _mending(engine: str) -> str:
    if engine == "transformers":
        return "give the interpreter of an environment that has it (--python)"
    return f"build it with `make engines-{engine}`, or give the interpreter of one that has it (--python)"
