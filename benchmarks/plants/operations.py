"""The operations that a case file may name, and a check of their parameters before anything runs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.plants import (
    in_attention,
    in_files,
    in_graphs,
    in_modules,
    in_requests,
    in_sampling,
    in_vllm,
    in_weights,
    joins,
    routing,
)
from benchmarks.plants.attending import SIGHTS, WEIGHINGS
from benchmarks.plants.changes import CHANGES
from benchmarks.plants.norms import NORMS
from benchmarks.plants.rotation import ROTATIONS, TURNS
from benchmarks.plants.weight_edits import EDITS


@dataclass(frozen=True)
class Operation:
    """A function and, where one of its parameters (`choice`) names a function of its own, those by name with the number
    of arguments that they are given without a name."""

    function: Callable[..., Any]
    choice: str | None = None
    variants: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    given: int = 1

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise TypeError for parameters that the function, or the one chosen, does not take."""
        own = inspect.signature(self.function)
        own.bind(None, **parameters)
        if self.choice is None:
            return
        chosen = parameters[self.choice]
        if chosen not in self.variants:
            raise TypeError(f"{self.choice} '{chosen}' is none of {', '.join(self.variants)}")
        rest = {name: value for name, value in parameters.items() if name not in own.parameters}
        inspect.signature(self.variants[chosen]).bind(*[None] * self.given, **rest)


IN_MODELS: dict[str, Operation] = {
    "output": Operation(in_modules.change_output, "change", CHANGES),
    "input": Operation(in_modules.change_input, "change", CHANGES),
    "sum_in_parts": Operation(in_modules.sum_in_parts),
    "norm": Operation(in_modules.change_norm, "norm", NORMS, 3),
    "activation": Operation(in_modules.change_activation, "name", in_modules.ACTIVATIONS),
    "product": Operation(in_modules.change_product, "product", in_modules.PRODUCTS, 3),
    "routing": Operation(routing.change_routing, "route", routing.ROUTES, 2),
    "join": Operation(joins.change_join, "join", joins.JOINS),
    "parallel": Operation(joins.run_in_parallel),
    "sight": Operation(in_attention.change_sight, "sight", SIGHTS),
    "weighing": Operation(in_attention.change_weighing, "weighing", WEIGHINGS),
    "turn": Operation(in_attention.change_turn, "turn", TURNS, 2),
    "rotation": Operation(in_attention.change_rotation, "rotation", ROTATIONS, 4),
    "kernel": Operation(in_attention.use_kernel),
    "choice": Operation(in_sampling.change_choice),
    "weight": Operation(in_weights.edit_weight, "edit", EDITS),
    "swap_weights": Operation(in_weights.swap_weights),
    "swap_layers": Operation(in_weights.swap_layers),
    "swap_rows": Operation(in_weights.swap_rows),
    "copy_weight": Operation(in_weights.copy_weight),
}
"""Operations on a live model, in place."""

IN_WEIGHTS = frozenset({"weight", "swap_weights", "swap_layers", "swap_rows", "copy_weight"})
"""Those that change stored tensors alone, so that an engine may be given the changed ones to load."""

IN_REQUESTS: dict[str, Operation] = {
    each.__name__: Operation(each)
    for each in (
        in_requests.repeat_first,
        in_requests.drop_first,
        in_requests.drop_last,
        in_requests.append,
        in_requests.keep_last,
        in_requests.keep_first,
        in_requests.raise_ids,
        in_requests.render_chats,
        in_requests.without_template,
        in_requests.sample_with,
        in_requests.run_with,
    )
}
"""Operations on what is asked and on what becomes of logits: from one target to another, on any engine."""


def set_config(config: Any, settings: Mapping[str, Any]) -> None:
    """Values of a configuration, in place, before a model is built from it; nested ones are merged."""
    for name, value in settings.items():
        old = getattr(config, name)
        setattr(config, name, merged(old, value) if isinstance(value, Mapping) else value)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the values of `new`, at every depth."""
    return {
        **old,
        **{name: merged(old[name], value) if isinstance(value, Mapping) else value for name, value in new.items()},
    }


IN_CONFIGS: dict[str, Operation] = {"config": Operation(set_config)}
"""Operations on a configuration, before the model is built."""

IN_GRAPHS: dict[str, Operation] = {name: Operation(function) for name, function in in_graphs.OPERATIONS.items()}
"""Operations on an exported graph, for ONNX Runtime."""

IN_FILES: dict[str, Operation] = {
    **{name: Operation(function) for name, function in in_files.OPERATIONS.items()},
    "edit_tensor": Operation(in_files.edit_tensor, "edit", EDITS),
}
"""Operations on a GGUF file, for llama.cpp."""


def give_options(request: Any, **options: Any) -> Any:
    """A capture's request with other options of the engine."""
    return request.model_copy(update={"options": {**request.options, **options}})


IN_OPTIONS: dict[str, Operation] = {"give_options": Operation(give_options)}
"""Operations on what an engine is started with."""

ANYWHERE = frozenset((*IN_REQUESTS, *IN_CONFIGS, *IN_WEIGHTS, *IN_OPTIONS))
"""Operations that most engines take: what is asked, and the folder that a model is loaded from."""

BY_ENGINE: dict[str, frozenset[str]] = {
    "transformers": ANYWHERE | set(IN_MODELS),
    "vllm": ANYWHERE | set(in_vllm.OPERATIONS),
    "onnxruntime": ANYWHERE | set(IN_GRAPHS),
    "llamacpp": frozenset((*IN_REQUESTS, *IN_OPTIONS, *IN_FILES)),
}
"""Operations that an engine's cases may name."""

OPERATIONS: dict[str, Operation] = {
    **IN_MODELS,
    **IN_REQUESTS,
    **IN_CONFIGS,
    **IN_GRAPHS,
    **IN_FILES,
    **IN_OPTIONS,
}
