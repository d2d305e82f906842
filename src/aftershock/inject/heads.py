"""Faults in what attention heads make: scores, probabilities, and the sums of values that they weigh."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from aftershock.errors import ContractError
from aftershock.faults import Fault, HeadValueSite, head_site, key_of
from aftershock.inject.due import due_rows
from aftershock.inject.struck import Struck, strike
from aftershock.models import BY_CHANNEL, HeadPart, LoadedModel, Pass

_SUMS: tuple[HeadPart, ...] = ("qk_accumulator", "sv_accumulator")
"""Parts that a module of their own shows (`HeadSite.shown_by`)."""


@dataclass(frozen=True)
class _Due:
    """A fault that the next forward call must strike, in each of some rows: at the row's place in the tensor, for a
    query in a column, at a key's token (counted from the row's first) or a channel."""

    fault: int
    rows: tuple[int, ...]
    places: tuple[int, ...]
    queries: tuple[int, ...]
    inner: tuple[int, ...]


class HeadFaults:
    """Those of a fault set that lie in what attention heads make; the others are left alone.

    Attention computed step by step makes two products: queries by keys, the scores, and probabilities by values. While
    a fault is due in a module, and only then, its calls of `torch.matmul` are watched, and what the first one returns
    or the second one reads is struck; scaling, caps and masks are the model's own code, as it is. A head's output is
    struck where the next projection reads it, whatever the kernel that made it; sums of products that are computed in
    integers where those show them.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range]) -> None:
        self._model, self._rows = model, rows
        self._faults = {number: fault for number, fault in enumerate(faults) if isinstance(fault.site, HeadValueSite)}
        self._heads = {number: head_site(fault, model.components) for number, fault in self._faults.items()}
        self._due: dict[tuple[str, HeadPart], list[_Due]] = {}
        self._watching = ExitStack()
        self._watched: _Products | None = None
        self._pass: Pass | None = None
        self.struck: list[Struck] = []
        self.reached: set[int] = set()

    def register(self) -> Iterable[RemovableHandle]:
        """Hooks on the attention modules that the faults name, and on the projections that read them."""
        readers = {site.layer: site.module for site in self._model.components.outputs if site.component == "o"}
        for name, layer in dict.fromkeys((site.module, site.layer) for site in self._heads.values()):
            attention = self._model.module.get_submodule(name)
            # Before others that watch its products: what is entered last sees what the fault made of them.
            yield attention.register_forward_pre_hook(self._watch(name), prepend=True)
            # An attention in integers watches too: what was entered last is left first.
            yield attention.register_forward_hook(lambda *_: self._watching.close(), always_call=True, prepend=True)
            yield attention.register_forward_hook(self._seen_whole(name))
            yield self._model.module.get_submodule(readers[layer]).register_forward_pre_hook(self._read(name))
        for site in dict.fromkeys(self._heads.values()):
            if site.part in _SUMS:
                shown = self._model.module.get_submodule(site.shown_by)
                yield shown.register_forward_hook(self._summed(site.module, site.part), prepend=True)

    def missed(self) -> list[int]:
        """Faults that were due in a call and did not fire; they are forgotten."""
        found = [due.fault for dues in self._due.values() for due in dues]
        self._due.clear()
        return found

    def begin_pass(self, call: Pass) -> None:
        """This call comes next."""
        self._pass = call
        for number, fault in self._faults.items():
            if call.first <= fault.first <= call.last:
                due = self._due_in(number, call)
                if due.rows:
                    site = self._heads[number]
                    self._due.setdefault((site.module, site.part), []).append(due)

    def _due_in(self, number: int, call: Pass) -> _Due:
        """Where a fault strikes in a call: in rows whose query sees the key."""
        fault, heads = self._faults[number], self._heads[number]
        site = fault.site
        assert isinstance(site, HeadValueSite)
        due = due_rows(number, fault.entry, self._rows[number], call, call.rows, range(call.start, call.stop))
        struck = []
        for row, place, query in zip(due.rows, due.places, due.columns, strict=True):
            inner: int | float | None = site.place
            if site.part not in BY_CHANNEL:
                inner = key_of(site, heads.seen(query - call.block.first_column(row)))
            if inner is not None:
                struck.append((row, place, query, int(inner)))
        rows, places, queries, inners = zip(*struck, strict=True) if struck else ((), (), (), ())
        return _Due(number, rows, places, queries, inners)

    def _watch(self, name: str) -> Callable[..., None]:
        def begin(module: torch.nn.Module, inputs: Any) -> None:
            if (name, "score") in self._due or (name, "probability") in self._due:
                products = _Products(
                    lambda scores: self._strike(name, "score", scores),
                    lambda probabilities: self._strike(name, "probability", probabilities),
                )
                self._watched = self._watching.enter_context(products)

        return begin

    def _seen_whole(self, name: str) -> Callable[..., None]:
        def after(*_: Any) -> None:
            watched, self._watched = self._watched, None
            if watched is not None and watched.products not in (0, 2):
                raise ContractError(
                    f"{name} made {watched.products} of the two products in which scores and probabilities are struck: "
                    "its attention is not one that aftershock knows"
                )

        return after

    def _read(self, name: str) -> Callable[..., None]:
        def before(module: torch.nn.Module, inputs: Any) -> None:
            if (name, "head_output") in self._due:
                heads = next(site.heads for site in self._heads.values() if site.module == name)
                # A token's heads lie one after the other.
                outputs = inputs[0].view(*inputs[0].shape[:2], heads, -1).transpose(1, 2)
                self._strike(name, "head_output", outputs)

        return before

    def _summed(self, name: str, part: HeadPart) -> Callable[..., None]:
        return lambda module, inputs, sums: self._strike(name, part, sums)

    def _strike(self, name: str, part: HeadPart, made: torch.Tensor) -> None:
        """Strike what a call made, shape (rows, heads, queries, keys or channels)."""
        call = self._pass
        assert call is not None
        for due in self._due.pop((name, part), ()):
            fault, heads = self._faults[due.fault], self._heads[due.fault]
            site = fault.site
            assert isinstance(site, HeadValueSite)
            if made.dim() != 4 or made.shape[:3] != (len(call.rows), heads.heads, call.stop - call.start):
                raise ContractError(
                    f"'{fault}' was due, but {name} made a tensor of shape {tuple(made.shape)} there: its attention is "
                    "not one that aftershock knows"
                )
            inner = list(due.inner)
            if part not in BY_CHANNEL:
                # Keys end with the call's own; some may have been let go of.
                first = call.stop - made.shape[3]
                inner = [call.block.first_column(row) + key - first for row, key in zip(due.rows, inner, strict=True)]
            queries = [query - call.start for query in due.queries]
            places = [(row, site.head, *at) for row, *at in zip(due.places, queries, inner, strict=True)]
            index = torch.tensor(places).to(made.device, non_blocking=True).unbind(1)
            _, changes = strike(made, index, [fault] * len(due.rows))
            self.reached.update(due.rows)
            for row, query, at, change in zip(due.rows, due.queries, due.inner, changes, strict=True):
                token = query - call.block.first_column(row)
                self.struck.append(Struck(due.fault, f"{name}.{part}", (token, site.head, at), row, *change))


class _Products(TorchFunctionMode):
    """Shows the result of the first `torch.matmul` and the left operand of the second before it is multiplied."""

    def __init__(self, first: Callable[[torch.Tensor], None], second: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._first, self._second, self.products = first, second, 0

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        if function is not torch.matmul:
            return function(*arguments, **(keywords or {}))
        self.products += 1
        if self.products == 2:
            self._second(arguments[0])
        product = function(*arguments, **(keywords or {}))
        if self.products == 1:
            self._first(product)
        return product
