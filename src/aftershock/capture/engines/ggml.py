"""Read ggml's tensors through ctypes: names, shapes and words of what an evaluation callback is handed."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES = {"f32": ("F32", "f4"), "f16": ("F16", "f2"), "bf16": ("BF16", "u2")}


class _Tensor(ctypes.Structure):
    """The beginning of `struct ggml_tensor`: element type, buffer, elements and byte strides of each axis."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("elements", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
    )


@dataclass(frozen=True)
class Node:
    """A tensor of a graph: name, operator, and its four axes in C order, outermost first."""

    name: str
    operator: str
    shape: tuple[int, ...]


class Ggml:
    """ggml's own functions, in the library that llama.cpp has loaded."""

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
        self._name = _function(library.ggml_get_name, ctypes.c_char_p, ctypes.c_void_p)
        self._operator = _function(library.ggml_op_desc, ctypes.c_char_p, ctypes.c_void_p)
        self._type_name = _function(library.ggml_type_name, ctypes.c_char_p, ctypes.c_int32)
        self._bytes = _function(library.ggml_nbytes, ctypes.c_size_t, ctypes.c_void_p)
        self._get = _function(
            library.ggml_backend_tensor_get, None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
        )

    def node(self, tensor: int) -> Node:
        """What a tensor is."""
        found = _Tensor.from_address(tensor)
        return Node(self._name(tensor).decode(), self._operator(tensor).decode(), tuple(found.elements)[::-1])

    def words(self, tensor: int) -> tuple[str, npt.NDArray[Any]] | None:
        """A copy of a tensor's words in C order, with the name of their type; None for a type that no bundle holds."""
        found = _Tensor.from_address(tensor)
        kind = _TYPES.get(self._type_name(found.type).decode())
        if kind is None:
            return None
        raw = np.empty(self._bytes(tensor), np.uint8)
        self._get(tensor, raw.ctypes.data, 0, raw.nbytes)
        shape, strides = tuple(found.elements)[::-1], tuple(found.strides)[::-1]
        view = np.ndarray(shape, np.dtype(kind[1]), raw.data, strides=strides)
        return kind[0], np.ascontiguousarray(view)


def _function(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function
