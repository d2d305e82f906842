"""Errors in an exported graph (onnx.GraphProto), as an exporter or an optimiser would leave them.

Nodes are named by the end of their path, layer by layer: `mlp/up_proj/MatMul` of layer 2 is the node
`/model/layers.2/mlp/up_proj/MatMul`. The package onnx is needed where something is made anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Graph = Any
Node = Any


def set_attribute(graph: Graph, node: str, attribute: str, value: float | int, layers: Sequence[int] | str) -> None:
    """Nodes have another value of an attribute."""
    from onnx import helper

    for found in _nodes(graph, node, layers):
        kept = [one for one in found.attribute if one.name != attribute]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(attribute, value)])


def set_operator(graph: Graph, node: str, operator: str, layers: Sequence[int] | str) -> None:
    """Nodes are another operator of as many inputs."""
    for found in _nodes(graph, node, layers):
        found.op_type = operator


def insert_after(
    graph: Graph, node: str, operator: str, layers: Sequence[int] | str, constants: Sequence[float] = ()
) -> None:
    """What nodes return passes through one operator more, whose further inputs are constants."""
    from onnx import TensorProto, helper

    for place, found in enumerate(_nodes(graph, node, layers)):
        right = found.output[0]
        found.output[0] = f"{right}/before"
        names = [f"{right}/constant_{number}" for number in range(len(constants))]
        for name, value in zip(names, constants, strict=True):
            graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        name = f"{found.name.rpartition('/')[0]}/{operator}_{place}"
        made = helper.make_node(operator, [found.output[0], *names], [right], name=name)
        graph.node.insert(list(graph.node).index(found) + 1, made)


def take_other(graph: Graph, node: str, place: int, value: str, layers: Sequence[int] | str) -> None:
    """Nodes read another value in one place; `{layer}`, `{previous}` in its name are the layer's number and the one
    before."""
    for found in _nodes(graph, node, layers):
        number = _layer(found)
        found.input[place] = value.format(layer=number, previous=number - 1)


def _nodes(graph: Graph, name: str, layers: Sequence[int] | str) -> Iterator[Node]:
    """The nodes of that name in these layers. Raises ValueError where there is none."""
    found = [one for one in graph.node if one.name.endswith(f"/{name}")]
    chosen = [one for one in found if layers == "all" or _layer(one) in layers]
    if not chosen:
        raise ValueError(f"the graph has no node {name} in layers {layers}")
    yield from chosen


def _layer(node: Node) -> int:
    """Number of a node's layer, -1 outside layers."""
    parts = [part for part in node.name.split("/") if part.startswith("layers.")]
    return int(parts[0].removeprefix("layers.")) if parts else -1


OPERATIONS: Mapping[str, Callable[..., None]] = {
    each.__name__: each for each in (set_attribute, set_operator, insert_after, take_other)
}
"""Operations on a graph, by name."""
