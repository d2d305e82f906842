"""Which tensors of llama.cpp's graphs are which component, by the names that its code gives them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggml import Node
from wire import LOGITS, Share, Value, Words, weight

_COMPONENTS = {
    "embd": "embedding",
    "inp_scaled": "embedding",
    "attn_norm": "norm",
    "Qcur": "q",
    "Kcur": "k",
    "Vcur": "v",
    "Qcur_normed": "qk_norm",
    "Kcur_normed": "qk_norm",
    "kqv_out": "sv",
    "attn_out": "o",
    "attn_post_norm": "norm",
    "ffn_inp": "",
    "ffn_norm": "norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_swiglu": "activation",
    "ffn_geglu": "activation",
    "ffn_out": "down",
    "ffn_post_norm": "norm",
    "l_out": "residual",
    "result_norm": "norm",
    "result_output": "lm_head",
}
"""Component by a tensor's name without its layer; a name without one has a value of its own, but no component."""

_WEIGHTS = {
    "token_embd": "embedding",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "attn_norm": "norm",
    "ffn_norm": "norm",
    "post_attention_norm": "norm",
    "post_ffw_norm": "norm",
    "attn_q_norm": "qk_norm",
    "attn_k_norm": "qk_norm",
    "output_norm": "norm",
    "output": "lm_head",
}

_VIEWS = ("RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "NONE")
"""Operators that compute nothing."""

_PAIRED = ("q", "k", "q_rotated", "k_rotated")


def layer_of(name: str) -> int | None:
    """The layer in a node's name, `ffn_out-3`."""
    match = re.fullmatch(r".*-(\d+)", name)
    return int(match[1]) if match else None


def _rows(shape: tuple[int, ...], counts: Sequence[int]) -> int:
    """The tokens of a tensor (1, 1, tokens, channels) or (1, tokens, heads, channels)."""
    _, outer, inner, _ = shape
    return inner if outer == 1 and inner in counts else outer


def halves(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Channels on the last axis whose rotated pairs lie side by side, in the order of transformers: all first ones of
    the pairs, then all second ones."""
    pairs = values.reshape(*values.shape[:-1], -1, 2)
    return np.concatenate((pairs[..., 0], pairs[..., 1]), axis=-1)


@dataclass
class Reading:
    """How the nodes of a pass become values; `pairs` where queries and keys are to be reordered.

    Some graphs leave the output projection without a name: the product that follows what attention gives is it.
    """

    pairs: bool
    head: int = 0
    before: str = ""

    def wanted(self, node: Node) -> Node | None:
        """The next node of a graph, by the name that it is recorded under; None for one that isn't."""
        before, self.before = self.before, node.name
        if before.startswith("kqv_out-") and node.operator == "MUL_MAT":
            return replace(node, name=f"attn_out-{layer_of(before)}")
        return node if self._stem(node) in _COMPONENTS and node.operator not in _VIEWS else None

    def begins(self, node: Node) -> bool:
        """Whether a pass begins with this node."""
        return node.operator == "GET_ROWS" and node.name == "embd"

    def values(self, seen: Sequence[tuple[Node, Words]], counts: Sequence[int]) -> Iterator[tuple[Value, Words]]:
        """The values of a pass, in order, one row for each of `counts` tokens (all of the pass, or those with logits).

        Of several nodes of one name, as product and bias, the last is the component; what is rotated is one of its own.
        """
        last = {self._role(node): number for number, (node, _) in enumerate(seen)}
        self.head = next((node.shape[-1] for node, _ in seen if node.operator == "ROPE"), self.head)
        for number, (node, words) in enumerate(seen):
            component, rotated, _ = self._role(node)
            component += "_rotated" if rotated else ""
            rows = _rows(node.shape, counts)
            if rows not in counts:  # no token's: without any logits to make, the last layer still has one row
                continue
            array = words.array.reshape(rows, -1)
            if self.pairs and component in _PAIRED:
                array = halves(array.reshape(rows, -1, self.head)).reshape(rows, -1)
            channels = array.shape[-1]
            is_component = component and last[self._role(node)] == number
            value = Value(
                module=f"{node.name}/{node.operator}",
                type=node.operator,
                layer=layer_of(node.name),
                shares=(Share(component, 0, channels, channels),) if is_component else (),
            )
            yield value, replace(words, array=array)
            if component == "lm_head":
                yield Value(LOGITS, type=node.operator), replace(words, array=array)

    def _role(self, node: Node) -> tuple[str, bool, str]:
        """Component, whether it is rotated, and the name that tells it from others of the same component."""
        component = _COMPONENTS[self._stem(node)]
        return component, node.operator == "ROPE", "" if component == "embedding" else node.name

    def _stem(self, node: Node) -> str:
        return re.sub(r"-\d+$", "", node.name)


def weights_of(file: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    """The tensors of a file: words of floats in the order of transformers, of packed blocks as they are stored."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    heads = {
        key: int(reader.fields[f"llama.attention.{name}"].contents())
        for key, name in (("q", "head_count"), ("k", "head_count_kv"))
        if f"llama.attention.{name}" in reader.fields
    }
    kinds = {"F32": "f4", "F16": "f2", "BF16": "u2"}
    for tensor in reader.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(.+?)\.(?:weight|bias)", tensor.name)
        component = _WEIGHTS.get(match[2]) if match else None
        kind = tensor.tensor_type.name
        array: npt.NDArray[Any] = np.asarray(tensor.data)
        if kind in kinds:
            array = array.view(kinds[kind]).reshape([int(size) for size in reversed(tensor.shape)])
            if reading.pairs and component in heads:
                array = _rows_in_halves(array, heads[component])
        layer = int(match[1]) if match and match[1] else None
        yield weight(tensor.name, Words(kind, array), component, layer)


def _rows_in_halves(array: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The rows of a weight of queries or keys in the order of transformers."""
    split = array.reshape(heads, -1, 2, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)
