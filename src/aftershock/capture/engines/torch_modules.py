"""Record what the modules of a live torch model return, for engines that run one: hooks on every module.

Words are copied inside the hook, since engines write into tensors that they have handed out: a rotary embedding in the
slices of a fused projection, a fused add and norm in its input.
"""

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from roles import INPUTS, ROTATED, layer_of, shares_of
from wire import Recorder, Share, Value, Words, weight

_NAMES = {
    torch.float64: ("F64", torch.int64, "f8"),
    torch.float32: ("F32", torch.int32, "f4"),
    torch.float16: ("F16", torch.int16, "f2"),
    torch.bfloat16: ("BF16", torch.int16, "u2"),
    torch.int64: ("I64", torch.int64, "i8"),
}
"""Name of safetensors, integers of the same width, and numpy's type for the words."""


def words_of(tensor: torch.Tensor) -> Words:
    """A copy of a tensor's words. Raises KeyError for a type that a bundle does not hold."""
    name, integers, kind = _NAMES[tensor.dtype]
    copied = tensor.detach().to("cpu", copy=True).contiguous()
    return Words(name, copied.view(integers).numpy().view(kind))


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters, by every name that they have."""
    return {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}


@cache
def source_of(code: Any) -> str:
    """Where a class or function is: file, from its package on, and line."""
    try:
        file, line = inspect.getsourcefile(code) or "", inspect.getsourcelines(code)[1]
    except (OSError, TypeError):
        return str(code.__module__)
    return f"{Path(*code.__module__.split('.')[:-1], Path(file).name).as_posix()}:{line}"


class Layout(Protocol):
    """How an engine lays tokens out in its tensors."""

    def rows(self, values: torch.Tensor) -> torch.Tensor | None:
        """The rows of a tensor that are tokens, shape (tokens, ...); None for one that has not a row for each."""

    def channels(self, values: torch.Tensor) -> int:
        """Number of values that a token has in a tensor, over all heads."""


class Watcher:
    """Puts what a model's modules take and return into a recorder. `shapes` are those of the parameters, by name."""

    def __init__(
        self,
        model: torch.nn.Module,
        config: Any,
        recorder: Recorder,
        layout: Layout,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._model, self._config, self._recorder, self._layout = model, config, recorder, layout
        self._active: list[str] = []
        self._calls: Counter[str] = Counter()
        self._names: dict[int, list[str]] = defaultdict(list)
        for name, module in model.named_modules(remove_duplicate=False):
            self._names[id(module)].append(name)
        modules = dict(model.named_modules(remove_duplicate=False))
        self._parameters: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for name, shape in shapes.items():
            owner, _, last = name.rpartition(".")
            role = last if last in ("weight", "bias") else "other"
            entry = {"name": name, "shape": list(shape), "role": role, "modules": [owner]}
            turned = role == "weight" and _turned(modules.get(owner))
            self._parameters[owner].append({**entry, "output_dim": 1} if turned else entry)

    @property
    def caller(self) -> str:
        """Path of the innermost module that runs, empty outside."""
        return self._active[-1] if self._active else ""

    @contextmanager
    def watching(self, leave_out: Sequence[str] = ()) -> Iterator[None]:
        """While open, every call is recorded, but those of the root and of the modules to leave out."""
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                if name and name not in leave_out:
                    hooks.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(self._after).remove)
            yield

    def begin(self) -> None:
        """A pass begins."""
        self._active.clear()
        self._calls.clear()

    def put(self, value: Value, values: torch.Tensor) -> None:
        """Record one value, where it has a row for each token."""
        rows = self._layout.rows(values)
        if rows is not None and rows.dtype in _NAMES and rows.numel():
            self._recorder.put(value, words_of(rows))

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = self._names[id(module)]
        # A module that several layers share is named by the layer that calls it.
        path = next((name for name in names if name.rpartition(".")[0] == self.caller), names[0])
        self._active.append(path)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if not tensors or path not in self._parameters:
            return
        channels = self._layout.channels(tensors[0])
        component = next((share.component for share in shares_of(path, self._config, channels)), "")
        if component == "position":  # given a mask, of which it works out what it looks up
            return
        shares = _whole(INPUTS[component], channels) if component in INPUTS else ()
        value = Value(path, "input", self._calls[path], shares=shares, layer=layer_of(path))
        kind: Any = type(module)
        self.put(replace(value, type=kind.__name__, source=source_of(kind)), tensors[0])

    def _after(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        path = self._active.pop()
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = [one for one in outputs if isinstance(one, torch.Tensor)]
        if not tensors:
            return
        kind: Any = type(module)
        value = Value(
            path,
            call=self._calls[path],
            type=kind.__name__,
            source=source_of(kind),
            layer=layer_of(path),
            shares=shares_of(path, self._config, self._layout.channels(tensors[0])),
        )
        self._calls[path] += 1
        for own, values in _values(value, self._operation(path, kind), self._parameters.get(path, ()), tensors):
            self.put(own, values)

    def _operation(self, path: str, kind: type) -> str:
        weights = [len(one["shape"]) for one in self._parameters.get(path, ()) if one["role"] == "weight"]
        if weights and "Embedding" in kind.__name__:
            return "embedding"
        if weights == [2]:
            return "linear"
        return "norm" if weights and kind.__name__.endswith("Norm") else "other"


def _values(
    value: Value, operation: str, parameters: Sequence[Mapping[str, Any]], tensors: Sequence[torch.Tensor]
) -> Iterator[tuple[Value, torch.Tensor]]:
    """The values of a call with its tensors: one, or a pair with the residual stream in it."""
    made = replace(value, operation=operation, parameters=tuple(parameters))
    if len(tensors) == 1:
        yield made, tensors[0]
        return
    first, second = tensors[:2]
    if "Rotary" in (value.type or ""):
        for number, (component, each) in enumerate(zip(ROTATED, (first, second), strict=True)):
            # Of three axes are the cosines and sines, of two what has been rotated by them.
            shares = _whole(component, each.shape[-1]) if each.dim() == 2 else ()
            yield replace(value, point=f"output.{number}", shares=shares), each
    elif second.shape != first.shape:
        yield made, first
    elif [share.component for share in value.shares] == ["residual"]:
        yield replace(value, point="output.0", shares=()), first
        yield replace(value, point="output.1", shares=()), second
        yield replace(value, point="residual"), first + second
    else:  # a fused add and norm: its input is the sum
        yield value, first
        yield replace(value, point="residual", shares=()), second


def _turned(module: torch.nn.Module | None) -> bool:
    """Whether a linear map stores its weight with the inputs first, as GPT-2's do."""
    return type(module).__name__ == "Conv1D"


def _whole(component: str, channels: int) -> tuple[Share, ...]:
    return (Share(component, 0, channels, channels),)


def weights_of(model: torch.nn.Module, config: Any) -> list[dict[str, Any]]:
    """Names, shapes and digests of a model's parameters, output channels first, each component's part of a fused one on
    its own."""
    modules = dict(model.named_modules())
    rows = {
        name: own.T if own.dim() == 2 and _turned(modules[name.rpartition(".")[0]]) else own
        for name, own in model.named_parameters()
    }
    return [entry for name, parameter in rows.items() for entry in _weights(name, parameter, config)]


def _weights(name: str, parameter: torch.Tensor, config: Any) -> Iterator[dict[str, Any]]:
    path = name.rpartition(".")[0]
    shares = shares_of(path, config, parameter.shape[0]) if parameter.dim() else ()
    if parameter.dtype not in _NAMES:
        return
    if len(shares) < 2:
        component = shares[0].component if shares else None
        yield weight(name, words_of(parameter), component, layer_of(path))
        return
    for share in shares:
        part = parameter[share.offset : share.offset + share.length]
        yield weight(name, words_of(part), share.component, layer_of(path), share.offset)
