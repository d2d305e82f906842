"""The two products of attention computed in integers: queries by keys, and probabilities by values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from aftershock.errors import InputError
from aftershock.models.components import Rows
from aftershock.models.integer import Accumulator, quantised, scaled_back

_LONGEST = 2**24 // 127**2
"""How many products of whole numbers within +-127 can be summed in fp32 without rounding: 1040."""

_EVERY_CHANNEL = Rows(0, 1, 1)


class QueriesByKeys(torch.nn.Module):
    """Scores: queries times keys, each rounded to int8 with one scale a token and head; int32 sums.

    The sums, shape (rows, heads, queries, keys), pass through `accumulator`, where a fault in a sum can strike. Scores
    are not quantised again, since the softmax bounds what they do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accumulator = Accumulator()

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """`queries`: shape (rows, heads, queries, channels), `keys`: (rows, heads, channels, keys); scores in the
        queries' dtype."""
        left, scale = quantised(queries.float(), -1)
        right, key_scale = quantised(keys.float(), -2)
        sums = exact_sums(left, right)
        return scaled_back(
            sums, lambda sums: self.accumulator(sums, left, right), lambda sums: sums.float() * scale * key_scale, ()
        ).to(queries.dtype)


class ProbabilitiesByValues(torch.nn.Module):
    """Outputs of heads: probabilities times values, rounded to int8; int32 sums.

    Values have one scale a token and head. A sum runs over tokens, so these scales go into the probabilities, which
    then have one scale a query and head: a query's is that of the tokens that it sees, since it gives the others
    probability 0. The sums, shape (rows, heads, queries, channels), pass through `accumulator`. Outputs in `again` are
    quantised again, with one scale a query and head (`scaled_back`).
    """

    def __init__(self, again: Sequence[Rows]) -> None:
        super().__init__()
        self.accumulator = Accumulator()
        self._again = tuple(again)

    def forward(self, probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`probabilities`: shape (rows, heads, queries, keys), `values`: (rows, heads, keys, channels); outputs in the
        values' dtype."""
        right, value_scale = quantised(values.float(), -1)
        left, scale = quantised(probabilities.float() * value_scale.transpose(-1, -2), -1)
        sums = exact_sums(left, right)
        return scaled_back(
            sums, lambda sums: self.accumulator(sums, left, right), lambda sums: sums.float() * scale, self._again
        ).to(values.dtype)


def exact_sums(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of whole numbers within +-127 (fp32, shapes (..., m, k) and (..., k, n)), int32, as an int8 unit with
    int32 accumulators makes it.

    `torch._int_mm` takes one matrix at a time, this takes all heads at once: in fp32 every product (at most 127^2) is
    exact, and so is every partial sum, in any order, as long as it stays within 2^24. So k is cut after 1040; the parts
    are added in int32. Kernels that round their operands to tf32 or bf16 change nothing: 127 has 7 bits.
    """
    parts = zip(torch.split(left, _LONGEST, -1), torch.split(right, _LONGEST, -2), strict=True)
    first, *others = (torch.matmul(one, other).to(torch.int32) for one, other in parts)
    for other in others:
        first += other
    return first


def products_to_integers(module: torch.nn.Module, attentions: Iterable[str], again: Sequence[str]) -> None:
    """Let attentions, computed step by step, multiply in integers; all else is the model's own code, as it is.

    An attention calls `torch.matmul` twice: the first call becomes that of its new submodule `qk`, the second that of
    `sv`, whose outputs are quantised again where `sv` is in `again`. Its calls raise InputError where it makes other
    products than these two.
    """
    for name in attentions:
        attention = module.get_submodule(name)
        attention.qk = QueriesByKeys()
        attention.sv = ProbabilitiesByValues((_EVERY_CHANNEL,) if "sv" in again else ())
        products = _Products(name, (attention.qk, attention.sv))
        attention.register_forward_pre_hook(products.begin)
        attention.register_forward_hook(products.end)
        attention.register_forward_hook(products.close, always_call=True)


def multiplies_in_integers(attention: torch.nn.Module) -> bool:
    """Whether an attention is one that `products_to_integers` changed."""
    return isinstance(getattr(attention, "qk", None), QueriesByKeys)


class _Products:
    """What takes the place of `torch.matmul` while an attention runs."""

    def __init__(self, name: str, products: Sequence[torch.nn.Module]) -> None:
        self._name, self._products = name, products
        self._open = ExitStack()
        self._left: list[torch.nn.Module] = []

    def begin(self, *_: Any) -> None:
        self._left = list(self._products)
        self._open.enter_context(_Multiplying(self._product))

    def end(self, *_: Any) -> None:
        if self._left:
            self._refuse()

    def close(self, *_: Any) -> None:
        self._open.close()

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if not self._left:
            self._refuse()
        product: torch.Tensor = self._left.pop(0)(left, right)
        return product

    def _refuse(self) -> None:
        raise InputError(
            f"{self._name} does not make its scores and outputs as two products of torch.matmul, so they cannot be "
            "computed in integers: leave arithmetic out, or choose another model"
        )


class _Multiplying(TorchFunctionMode):
    """While active, `torch.matmul` is another function."""

    def __init__(self, product: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._product = product

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        return (self._product if function is torch.matmul else function)(*arguments, **(keywords or {}))
