"""The two products of attention in floating point, which no module shows: `torch.matmul` is watched while it runs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from aftershock.errors import ContractError
from aftershock.protect.guards import Inputs

Guard = Callable[[torch.nn.Module, Inputs, torch.Tensor], torch.Tensor | None]


class AttentionWatch:
    """Shows the first product of an attention, of queries and keys, to one guard, the second, of probabilities and
    values, to another; None where one is not watched."""

    def __init__(self, attention: torch.nn.Module, guards: Sequence[Guard | None]) -> None:
        self._attention, self._guards = attention, tuple(guards)
        self._open = ExitStack()
        self._watched: _Watched | None = None

    def register(self) -> tuple[RemovableHandle, ...]:
        """Watch each call. A fault in a product strikes before its guard sees it."""
        return (
            self._attention.register_forward_pre_hook(self._begin),
            self._attention.register_forward_hook(self._end),
            # What was entered last is left first, whatever happens.
            self._attention.register_forward_hook(self._close, always_call=True, prepend=True),
        )

    def _begin(self, *_: Any) -> None:
        self._watched = self._open.enter_context(_Watched(self._attention, self._guards))

    def _end(self, *_: Any) -> None:
        assert self._watched is not None
        if self._watched.products != 2:
            raise ContractError(f"an attention made {self._watched.products} products, and two were to be checked")

    def _close(self, *_: Any) -> None:
        self._open.close()


class _Watched(TorchFunctionMode):
    """While active, each result of `torch.matmul` is shown to the guard whose turn it is."""

    def __init__(self, attention: torch.nn.Module, guards: Sequence[Guard | None]) -> None:
        super().__init__()
        self._attention, self._guards = attention, guards
        self.products = 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        product = function(*arguments, **(keywords or {}))
        if function is not torch.matmul:
            return product
        guard = self._guards[self.products] if self.products < len(self._guards) else None
        self.products += 1
        found = None if guard is None else guard(self._attention, arguments, product)
        return product if found is None else found
