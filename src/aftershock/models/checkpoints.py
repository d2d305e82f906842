"""Where a model's files lie: what a spec means, downloaded where need be."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from aftershock.errors import InputError
from aftershock.models.cache import Progress, quiet
from aftershock.models.conversion import converted
from aftershock.models.demo import pull

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]


def checkpoint_folder(spec: str, progress: Progress = quiet) -> Path:
    """The folder of transformers that a spec means, converted where it is a GGUF file: weights in safetensors.

    Raises InputError for a model that is missing, damaged or pickled.
    """
    file = gguf_file(spec, progress)
    folder = folder_of(spec, progress) if file is None else converted(file, progress)
    check_weights(folder)
    return folder


def gguf_file(spec: str, progress: Progress) -> Path | None:
    """The GGUF file that a spec means, downloaded where need be; None where it means none."""
    if spec.startswith("demo:"):
        return pull(spec.removeprefix("demo:"), progress)
    path = Path(spec).expanduser()
    return path if path.is_file() and path.suffix.lower() == ".gguf" else None


def folder_of(spec: str, progress: Progress) -> Path:
    """The local folder that holds the model, downloaded where need be."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{spec} is a file but no .gguf: give its folder, or a .gguf file")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", spec) and path.suffix.lower() != ".gguf":
        return _from_hub(spec, progress)
    raise InputError(
        f"model {spec} does not exist: give demo:NAME, a folder, a .gguf file or a hub id (organisation/name)"
    )


def _from_hub(spec: str, progress: Progress) -> Path:
    progress(f"looking for {spec} on the model hub")
    try:
        return Path(snapshot_download(spec, allow_patterns=_HUB_FILES))
    except Exception as error:  # network libraries differ in what they raise
        raise InputError(
            f"model {spec} is neither a folder here nor available from the model hub "
            f"({type(error).__name__}): check the name and the connection, or give a local folder"
        ) from error


def check_weights(folder: Path) -> None:
    """Raise InputError unless the folder holds a configuration and readable safetensors."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: give the folder of a transformers model")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
        if pickles:
            raise InputError(
                f"{folder} holds its weights as {pickles[0]}, a pickle, which can run code when it is loaded: "
                "convert it to safetensors first"
            )
        raise InputError(f"{folder} holds no .safetensors file: give a folder with the model's weights")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged or cut short ({error}): copy or download it again") from error
