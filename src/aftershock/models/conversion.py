"""GGUF files, converted once to safetensors: reading them takes transformers half a minute each time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils, modeling_utils

from aftershock.errors import InputError
from aftershock.models.cache import Progress, cache_folder, file_sha256, quiet, staged


def converted(path: Path, progress: Progress = quiet) -> Path:
    """Folder with the float32 safetensors, configuration and tokenizer of a GGUF file.

    The values are exactly what dequantisation gives. The folder is kept in the cache under the file's SHA-256.
    Raises InputError for a file that cannot be read or whose architecture transformers cannot convert.
    """
    target = cache_folder() / "converted" / file_sha256(path)
    if target.is_dir():
        return target
    progress(f"converting {path.name} to safetensors (once)")
    try:
        with _lean_reading():
            module = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # readers of what they don't know raise whatever comes
        opened(path)
        raise InputError(
            f"{path} cannot be read as a GGUF model ({first_line(error)}): get the file again, or choose another"
        ) from error
    with staged(target) as folder:
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target


def opened(path: Path) -> gguf.GGUFReader:
    """A GGUF file's table. Raises InputError where it can't be read, or tells of tensors that end behind the file."""
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # a damaged file makes the reader raise whatever comes, in words of no help
        raise InputError(
            f"{path} cannot be read as a GGUF model: it is damaged or cut short, get the file again"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0]


@contextmanager
def _lean_reading() -> Iterator[None]:
    """While open, transformers parses a GGUF file once, builds its table of names once, and draws no bars.

    By itself it parses the file three times and builds the table for every submodule, most of the whole time.
    It also insists on accelerate being installed, which it then uses only to spread a model over devices.
    """
    table = cache(gguf.get_tensor_name_map)
    silent = partial(modeling_gguf_pytorch_utils.tqdm, disable=True)
    with (
        _replaced(gguf, GGUFReader=cache(gguf.GGUFReader), get_tensor_name_map=table),
        _replaced(modeling_gguf_pytorch_utils, tqdm=silent),
        _replaced(modeling_utils, is_accelerate_available=lambda: True),
    ):
        yield


@contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    saved = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in saved.items():
            setattr(owner, name, value)
