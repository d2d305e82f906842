"""Protections of whole passes of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Cache

from aftershock.numerics import words
from aftershock.protect.caches import Restore, rewinding
from aftershock.protect.tally import Event, Site


class Passes:
    """What is cached before the pass at hand, and how it is run once more. `first`: whether the pass begins a
    generation, so that nothing is cached yet."""

    def __init__(self) -> None:
        self.first = True
        self._restore: Restore = lambda: None

    def tell_first(self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """As a forward pre-hook of the model, with keywords. Of a static cache the length is read from its device."""
        cache = _cache(arguments, keywords)
        self.first = cache is None or bool(cache.get_seq_length() == 0)

    def before_pass(self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """The same, for passes that may be run once more."""
        self._restore = rewinding(_cache(arguments, keywords))

    def once_more(self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """The pass run again from what was cached before it; what it caches takes the place of what it cached first.
        Raises InputError as `rewinding` says."""
        self._restore()
        return module.forward(*arguments, **keywords)


def _cache(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Cache | None:
    return next((one for one in (*keywords.values(), *arguments) if isinstance(one, Cache)), None)


class Alarm:
    """Whether a check of the pass at hand found anything; while `deferred`, checks that recover only tell it."""

    def __init__(self, deferred: bool) -> None:
        self.deferred = deferred
        self._flags: dict[torch.device, torch.Tensor] = {}

    def tell(self, wrong: torch.Tensor) -> None:
        """Remember, on its device, whether any of `wrong` (bool) is set."""
        if wrong.device not in self._flags:
            # Made in inference mode it could not be changed outside.
            with torch.inference_mode(False):
                self._flags[wrong.device] = torch.zeros((), dtype=torch.bool, device=wrong.device)
        self._flags[wrong.device].logical_or_(wrong.any())

    def clear(self, *_: Any) -> None:
        """Forget what was told; a forward pre-hook of the model, as a pass before may have ended in an exception."""
        for flag in self._flags.values():
            flag.zero_()

    def taken(self) -> bool:
        """Whether anything was told since it was asked last. Waits for the devices."""
        found = [bool(flag) for flag in self._flags.values()]
        self.clear()
        return any(found)


class RepeatedPasses:
    """Recovery on an accelerator: reading a flag waits for it, so one is read after a whole pass, and a pass that it
    says was wrong is run once more, every check then acting at once."""

    def __init__(self, passes: Passes, alarm: Alarm, events: list[Event]) -> None:
        self._passes, self._alarm, self._events = passes, alarm, events

    def after_pass(
        self, module: torch.nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any], output: Any
    ) -> Any:
        """As a forward hook of the model, with keywords: the repeated pass's output, None where nothing was wrong."""
        if not self._alarm.taken():
            return None
        self._events.append(Event(Site("", "pass", None), "Checksum", 1, "recover", None))
        self._alarm.deferred = False
        try:
            return self._passes.once_more(module, arguments, keywords)
        finally:
            self._alarm.deferred = True


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
        second = self._passes.once_more(module, arguments, keywords)
        if _equal(output, second):
            return second
        third = self._passes.once_more(module, arguments, keywords)
        agree = _equal(second, third)
        # The first run may have been the right one: its answer is used, beside keys and values of the third.
        right = output if not agree and _equal(output, third) else third
        self._events.append(
            Event(Site("", "first token", None), "DualFirstToken", 1, "recover", agree or right is output)
        )
        return right


def _equal(first: Any, second: Any) -> bool:
    return torch.equal(*(words(one[0] if isinstance(one, tuple) else one.logits) for one in (first, second)))
