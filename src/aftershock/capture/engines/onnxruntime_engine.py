"""Capture what ONNX Runtime computes: `python onnxruntime_engine.py REQUEST.json FOLDER`, in its environment.

Options: `providers`, `optimisation` (a name of GraphOptimizationLevel: ORT_ENABLE_ALL), `plugin` (a Python file whose
`change(graph)` is given the onnx.ModelProto).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from graph_engine import Array, capture_graph
from wire import Asked, read_request

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


@dataclass(frozen=True)
class Session:
    """ONNX Runtime's session."""

    own: onnxruntime.InferenceSession

    @property
    def inputs(self) -> Mapping[str, tuple[str, Sequence[Any]]]:
        """numpy's type and the shape of each input."""
        return {one.name: (_TYPES[one.type], one.shape) for one in self.own.get_inputs()}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs."""
        names = [one.name for one in self.own.get_outputs()]
        return dict(zip(names, self.own.run(names, dict(feed)), strict=True))


def capture(asked: Asked, folder: Path) -> None:
    """Run the prompts and write what was computed."""
    level = asked.options.get("optimisation", "ORT_ENABLE_ALL")
    providers = asked.options.get("providers", ["CPUExecutionProvider"])

    def open_session(graph: onnx.ModelProto, weights: Path) -> Session:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = asked.threads
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        return Session(onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=providers))

    engine = "onnxruntime", onnxruntime.__version__
    capture_graph(asked, folder, open_session, engine, {"providers": providers, "optimisation": level})


if __name__ == "__main__":
    capture(read_request(sys.argv[1]), Path(sys.argv[2]))
