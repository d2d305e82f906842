"""Protections of whole passes of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from aftershock.numerics import words
from aftershock.protect.tally import Event, Site


class Passes:
    """Tells whether the pass at hand begins a generation: nothing is cached yet."""

    def __init__(self) -> None:
        self.first = True

    def before_pass(self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """As a forward pre-hook of the model, with keywords."""
        cache = keywords.get("past_key_values")
        self.first = cache is None or cache.get_seq_length() == 0


class FirstTokenTwice:
    """Runs the first pass of each generation again, and once more where the two disagree."""

    def __init__(self, passes: Passes, events: list[Event]) -> None:
        self._passes, self._events = passes, events

    def after_pass(
        self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any], output: Any
    ) -> Any:
        """As a forward hook of the model, with keywords: of three outputs two of which agree the last, of three that
        all differ the last too; what is cached is always what the last run wrote."""
        if not self._passes.first:
            return None
        second = self._once_more(module, arguments, keywords)
        if _equal(output, second):
            return second
        third = self._once_more(module, arguments, keywords)
        agree = _equal(second, third)
        # The first run may have been the right one: its answer is used, beside keys and values of the third.
        right = output if not agree and _equal(output, third) else third
        self._events.append(
            Event(Site("", "first token", None), "DualFirstToken", 1, "recover", agree or right is output)
        )
        return right

    def _once_more(self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        cache = keywords.get("past_key_values")
        if isinstance(cache, DynamicCache):
            cache.reset()  # which appends; others write where they wrote
        return module.forward(*arguments, **keywords)


def _equal(first: Any, second: Any) -> bool:
    return torch.equal(words(first.logits), words(second.logits))
