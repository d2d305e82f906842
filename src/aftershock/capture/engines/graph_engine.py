"""Run an exported graph prompt by prompt and record the values in it, whichever runtime does the arithmetic.

Values inside the graph become outputs of it. That can undo a runtime's own fusions, so the graph as it was runs the
first prompt too, and `settings.logits_moved_by` is the largest difference. Prompts that run together are those of one
length, since the graph's attention takes padding in its own ways.
"""

import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from assembly import assemble
from exporting import graph_file
from graphs import Mapped, mapped_values
from settings import end_tokens, head_size, rendered
from wire import LOGITS, Asked, Recorder, Row, Value, Words, weight

_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64"}

Array = npt.NDArray[Any]


class Session(Protocol):
    """A runtime that holds a graph."""

    @property
    def inputs(self) -> Mapping[str, tuple[str, Sequence[Any]]]:
        """numpy's type and the shape of each input; unknown sizes are no integers."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs."""


Open = Callable[[onnx.ModelProto, Path], Session]
"""Opens a session on a graph whose weights lie in a folder."""


@dataclass(frozen=True)
class Engine:
    """A session, channels of a head, and what the session's values are."""

    session: Session
    head: int
    values: Mapping[str, Mapped]

    def empty_cache(self, rows: int) -> dict[str, Array]:
        """Keys and values of no token."""
        return {
            name: np.zeros((rows, shape[1], 0, self.head), kind)
            for name, (kind, shape) in self.session.inputs.items()
            if name.startswith("past_key_values.")
        }

    def run(self, ids: npt.NDArray[np.int64], length: int, cache: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs of one pass over tokens, shape (rows, columns), after which each row is `length` long."""
        columns = ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((len(ids), length), np.int64),
            "position_ids": np.tile(np.arange(length - columns, length), (len(ids), 1)),
        }
        known = self.session.inputs
        return self.session.run({name: values for name, values in given.items() if name in known} | dict(cache))


def capture_graph(
    asked: Asked, folder: Path, open_session: Open, engine: tuple[str, str], settings: Mapping[str, Any]
) -> None:
    """Run the prompts and write what was computed. `engine` is its name and version."""
    path = graph_file(asked)
    graph = onnx.load(str(path), load_external_data=False)
    if "plugin" in asked.options:
        runpy.run_path(str(asked.options["plugin"]))["change"](graph)
    head = head_size(path.parent)
    plain = Engine(open_session(graph, path.parent), head, {})
    values = mapped_values(graph.graph)
    known = {output.name for output in graph.graph.output}
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in values if name not in known)
    running = Engine(open_session(graph, path.parent), head, values)

    tokenizer = _tokenizer(asked, path.parent)
    requests = [rendered(tokenizer, prompt) for prompt in asked.prompts]
    prompts = [request["prompt"] for request in requests]
    ends = end_tokens(path.parent)
    recorder = Recorder(folder, asked)
    facts = {
        "device": "cpu",
        "onnx": onnx.__version__,
        "opsets": {one.domain or "ai.onnx": one.version for one in graph.opset_import},
        "sampling": {"do_sample": False},
        "template": getattr(tokenizer, "chat_template", None),
        "special_tokens": {"eos": sorted(ends)},
        "config": _attributes(graph.graph),
        "logits_moved_by": _moved(plain, running, prompts[0]),
    }
    recorder.header(*engine, {**facts, **settings}, list(_weights(graph.graph, path.parent, values)))
    sampled: dict[int, list[int]] = {}
    for group in _groups(asked, prompts):
        sampled |= _generate(running, recorder, group, prompts, asked.max_new_tokens, ends)
    recorder.finish([{**request, "sampled": sampled[number]} for number, request in enumerate(requests)])
    assemble(folder)


def _tokenizer(asked: Asked, folder: Path) -> Any:
    if all(isinstance(prompt, list) and isinstance(prompt[0], int) for prompt in asked.prompts):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _groups(asked: Asked, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    for group in asked.groups():
        by_length: dict[int, list[int]] = {}
        for number in group:
            by_length.setdefault(len(prompts[number]), []).append(number)
        yield from by_length.values()


def _moved(plain: Engine, engine: Engine, prompt: Sequence[int]) -> float:
    """By how much the additional outputs move the first prompt's logits."""
    ids = np.array([prompt], np.int64)
    first, second = (one.run(ids, len(prompt), one.empty_cache(1))["logits"] for one in (plain, engine))
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max())


def _generate(
    engine: Engine,
    recorder: Recorder,
    group: Sequence[int],
    prompts: Sequence[Sequence[int]],
    most: int,
    ends: frozenset[int],
) -> dict[int, list[int]]:
    """Greedy answers of requests of one length, by number."""
    sampled: dict[int, list[int]] = {number: [] for number in group}
    ids = np.array([prompts[number] for number in group], np.int64)
    cache = engine.empty_cache(len(group))
    length = 0
    for _ in range(most):
        start, length = length, length + ids.shape[1]
        live = [line for line, number in enumerate(group) if not ends.intersection(sampled[number])]
        recorder.begin(
            [
                Row(group[line], start + column, int(token), start + column)
                for line in live
                for column, token in enumerate(ids[line])
            ]
        )
        outputs = engine.run(ids, length, cache)
        cache = {
            name.replace("present", "past_key_values", 1): values
            for name, values in outputs.items()
            if name.startswith("present.")
        }
        _put(engine, recorder, outputs, ids, live)
        chosen = outputs["logits"][:, -1].argmax(-1)
        for line in live:
            sampled[group[line]].append(int(chosen[line]))
        ids = chosen[:, None].astype(np.int64)
        if all(ends.intersection(tokens) for tokens in sampled.values()):
            break
    return sampled


def _put(
    engine: Engine, recorder: Recorder, outputs: Mapping[str, Array], ids: npt.NDArray[np.int64], live: Sequence[int]
) -> None:
    """Record the mapped values of a pass, for the rows that are still live."""

    def words(name: str, cached: bool) -> Words | None:
        values = outputs[name]
        if cached:  # (rows, heads, all columns, channels): those of this pass
            values = values[:, :, -ids.shape[1] :].transpose(0, 2, 1, 3)
        if values.dtype.name not in _NAMES or values.shape[:2] != ids.shape:
            return None
        flat = values[list(live)].reshape(len(live) * ids.shape[1], *values.shape[2:])
        return Words(_NAMES[values.dtype.name], flat.reshape(len(flat), -1) if cached else flat)

    for name, mapped in engine.values.items():
        made, value = words(name, mapped.cached), mapped.value
        if made is None:
            continue
        given = Value(value.module, "input", type=value.type, layer=value.layer)
        if value.operation == "embedding":
            recorder.put(given, Words("I64", ids[list(live)].reshape(-1)))
        elif mapped.takes in engine.values:
            taken = words(mapped.takes, cached=False)
            if taken is not None:
                recorder.put(given, taken)
        recorder.put(mapped.record(made.array.shape[-1]), made)
    logits = words("logits", cached=False)
    if logits is not None:
        recorder.put(Value(LOGITS, type="MatMul"), logits)


def _weights(graph: onnx.GraphProto, folder: Path, values: Mapping[str, Mapped]) -> Iterator[dict[str, Any]]:
    """The initializers that mapped nodes take, output channels first."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for mapped in values.values():
        for parameter in mapped.value.parameters:
            tensor = tensors[parameter["name"]]
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
            if kind not in _NAMES or parameter["role"] == "other":
                continue
            array = onnx.numpy_helper.to_array(tensor, str(folder))
            array = array.T if parameter["output_dim"] else array
            for share in mapped.shares(array.shape[0]):
                part = Words(_NAMES[kind], array[share.offset : share.offset + share.length])
                yield weight(tensor.name, part, share.component, mapped.value.layer, share.offset)


def _attributes(graph: onnx.GraphProto) -> dict[str, Any]:
    """Attributes of the first node of each fused operator: heads, scale, window, epsilon."""
    numbers = (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT)
    found: dict[str, Any] = {}
    for node in graph.node:
        if node.domain == "com.microsoft" or node.op_type.endswith("Normalization"):
            own = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute if one.type in numbers}
            found.setdefault(node.op_type, own)
    return found
