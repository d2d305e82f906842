"""Make a graph of a folder of transformers, once."""

import subprocess
import sys
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from wire import Asked

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int4": "int4"}


def graph_file(asked: Asked) -> Path:
    """The graph: a .onnx file, `model.onnx` in a folder, or what onnxruntime-genai's builder makes of a folder of
    transformers and keeps in the cache. Raises ValueError for a dtype that it makes none in."""
    model = Path(asked.model)
    if model.suffix == ".onnx":
        return model
    if (model / "model.onnx").exists():
        return model / "model.onnx"
    if asked.dtype not in _PRECISIONS:
        raise ValueError(f"no graph is built in dtype {asked.dtype}: give one of {', '.join(_PRECISIONS)}")
    files = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in model.iterdir())
    made_by = files, asked.dtype, version("onnxruntime-genai")
    key = blake2b(repr(made_by).encode(), digest_size=12).hexdigest()
    target = Path(asked.cache) / f"onnx-{key}"
    if not target.exists():
        staged = target.with_suffix(".partial")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", asked.model, "-o", str(staged)]
        subprocess.run([*command, "-p", _PRECISIONS[asked.dtype], "-e", "cpu"], check=True)
        staged.rename(target)
    return target / "model.onnx"
