"""Capture what OpenVINO computes: `python openvino_engine.py REQUEST.json FOLDER`, in its environment.

It reads the same graphs as ONNX Runtime, and computes them with its own kernels. The precision that it computes in is
the request's dtype: left alone it takes bfloat16 where the processor has it, whatever the graph says.

Options: `precision` (f32, f16, bf16), `plugin` (a Python file whose `change(graph)` is given the onnx.ModelProto).
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import openvino

from graph_engine import Array, capture_graph
from wire import Asked, read_request

_PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Session:
    """OpenVINO's compiled model."""

    own: openvino.CompiledModel

    @property
    def inputs(self) -> Mapping[str, tuple[str, Sequence[Any]]]:
        """numpy's type and the shape of each input."""
        return {
            one.any_name: (
                one.element_type.to_dtype().name,
                [size.get_length() if size.is_static else None for size in one.partial_shape],
            )
            for one in self.own.inputs
        }

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs, copied: the runtime uses its memory again."""
        results = self.own(dict(feed))
        return {name: results[output].copy() for output in self.own.outputs for name in output.get_names()}


def capture(asked: Asked, folder: Path) -> None:
    """Run the prompts and write what was computed."""
    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": asked.options.get("precision", _PRECISIONS.get(asked.dtype, "f32")),
        "INFERENCE_NUM_THREADS": asked.threads,
    }

    def open_session(graph: onnx.ModelProto, weights: Path) -> Session:
        with TemporaryDirectory(dir=asked.cache) as temporary:
            for (
                file
            ) in weights.iterdir():  # the graph names its weights' file, which must lie beside it, and be no link
                _beside(file, Path(temporary) / file.name)
            changed = Path(temporary) / "aftershock.onnx"
            changed.write_bytes(graph.SerializeToString())
            return Session(core.compile_model(core.read_model(changed), "CPU", properties))

    version = openvino.__version__.split("-")[0]
    capture_graph(asked, folder, open_session, ("openvino", version), {"properties": properties})


def _beside(file: Path, copy: Path) -> None:
    """The same file in another place, without its words where the disk can."""
    try:
        copy.hardlink_to(file)
    except OSError:
        shutil.copy(file, copy)


if __name__ == "__main__":
    capture(read_request(sys.argv[1]), Path(sys.argv[2]))
