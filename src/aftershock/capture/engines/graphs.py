"""Which values of an exported graph are which component, by the names that exporters keep of the modules."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wire import Share, Value


@dataclass(frozen=True)
class Mapped:
    """A value of a graph: what it is, the components of its channels with their proportions, the name of the value that
    it is made from, and whether it is a cache of keys or values."""

    value: Value
    components: tuple[str, ...]
    parts: tuple[int, ...] = (1,)
    takes: str = ""
    cached: bool = False

    def shares(self, channels: int) -> tuple[Share, ...]:
        """The components of that many channels."""
        unit = channels // sum(self.parts)
        return tuple(
            Share(component, sum(self.parts[:number]) * unit, self.parts[number] * unit, channels)
            for number, component in enumerate(self.components)
        )

    def record(self, channels: int) -> Value:
        """The value to record, of that many channels."""
        return replace(self.value, shares=self.shares(channels))


_PATHS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"embed_tokens/Gather", ("embedding",)),
    (r"(self_)?attn/qkv_proj/", ("q", "k", "v")),
    (r"(self_)?attn/q_proj/", ("q",)),
    (r"(self_)?attn/k_proj/", ("k",)),
    (r"(self_)?attn/v_proj/", ("v",)),
    (r"(self_)?attn/(q|k)_norm/", ("qk_norm",)),
    (r"(self_)?attn/(GroupQueryAttention|MultiHeadAttention)", ("sv",)),
    (r"(self_)?attn/o_proj/", ("o",)),
    (r"mlp/gate_proj/", ("gate",)),
    (r"mlp/up_proj/", ("up",)),
    (r"mlp/Mul$", ("activation",)),
    (r"mlp/down_proj/", ("down",)),
    (r"lm_head/MatMul", ("lm_head",)),
    (r"(layernorm|layers\.\d+/final_norm_layernorm|model/norm)/", ("norm",)),
)
"""Node names, as far as they tell. Of several nodes of one place, as MatMul and Add of a bias, the last one counts."""

_OPERATIONS = {"MatMul": "linear", "SimplifiedLayerNormalization": "norm", "LayerNormalization": "norm"}

_SUM = 3
"""Which output of a fused add and norm is the sum."""


def mapped_values(graph: Any) -> dict[str, Mapped]:
    """The values of a graph (onnx.GraphProto) that are components, by name, in the order of its nodes.

    Where a fused add and norm does not give its sum, the graph is changed to give it.
    """
    found: dict[tuple[int | None, str], tuple[str, Mapped]] = {}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    heads = _heads(graph)
    for node in graph.node:
        layer = _layer(node.name)
        pattern = next((one for one in _PATHS if re.search(one[0], node.name)), None)
        if pattern is None or not node.output:
            continue
        components = pattern[1]
        value = Value(
            module=node.name.strip("/"),
            type=node.op_type,
            layer=layer,
            operation="embedding" if "embedding" in components else _OPERATIONS.get(node.op_type, "other"),
            parameters=tuple(_parameters(node, shapes)),
        )
        if components == ("norm",) and re.search(r"final_norm|model/norm", node.name):
            value = replace(value, layer=None)
        parts = heads if len(components) > 1 else (1,)
        place = node.name.rsplit("/", 1)[0]
        mapped = Mapped(value, components, parts, node.input[0])
        if node.op_type == "Add" and (layer, place) in found:
            mapped = _with_bias(found[layer, place][1], mapped)
        found[layer, place] = node.output[0], mapped
        if node.op_type == "SkipSimplifiedLayerNormalization" and layer is not None and "post_attention" not in place:
            while len(node.output) <= _SUM:
                node.output.append("")
            node.output[_SUM] = node.output[_SUM] or f"{node.name}/output_{_SUM}"
            summed = replace(value, point="residual", layer=layer - 1, operation="other", parameters=())
            found[layer, f"{place}:residual"] = node.output[_SUM], Mapped(summed, ("residual",))
        if components == ("sv",) and len(node.output) > 2:
            keys = Value(module=value.module, point="output.1", type=value.type, layer=layer)
            found[layer, f"{place}:keys"] = node.output[1], Mapped(keys, ("k_rotated",), cached=True)
    return dict(found.values())


def _with_bias(product: Mapped, added: Mapped) -> Mapped:
    """A product and the bias that is added to it, as one."""
    parameters = (*product.value.parameters, *added.value.parameters)
    value = replace(added.value, operation=product.value.operation, parameters=parameters)
    return replace(added, value=value, takes=product.takes)


def _layer(name: str) -> int | None:
    match = re.search(r"layers\.(\d+)/", name)
    return int(match[1]) if match else None


def _heads(graph: Any) -> tuple[int, ...]:
    """Channels of queries, keys and values in a fused projection, by the fused attention's numbers of heads."""
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            numbers: Mapping[str, int] = {one.name: one.i for one in node.attribute}
            return numbers["num_heads"], numbers["kv_num_heads"], numbers["kv_num_heads"]
    return (1, 1, 1)


def _parameters(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    for name in node.input:
        shape = shapes.get(name)
        if shape and len(shape) <= 2:
            role = "weight" if name.endswith("weight") else "bias" if name.endswith("bias") else "other"
            dim = 1 if node.op_type == "MatMul" else 0
            modules = [node.name.strip("/")]
            dim = dim if len(shape) == 2 else 0
            yield {"name": name, "shape": list(shape), "role": role, "output_dim": dim, "modules": modules}
