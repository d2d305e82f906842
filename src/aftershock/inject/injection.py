"""Arm faults on a live model, prove that they fired exactly as named, and undo them.

Weights are written in place through an integer view and written back word by word. An output is written by one hook on
the module it belongs to, in the passes it names; a word of the key-value cache, and what heads make, by some on the
attention that keeps or makes it. Nothing is copied but the words struck.
"""

from collections.abc import Sequence
from types import TracebackType

from torch.utils.hooks import RemovableHandle

from aftershock.errors import ContractError, InputError
from aftershock.faults import ALWAYS, Fault, StoredWordSite, check
from aftershock.inject.cached import CachedFaults
from aftershock.inject.heads import HeadFaults
from aftershock.inject.outputs import OutputFaults
from aftershock.inject.struck import Struck, StruckSet
from aftershock.inject.weights import WeightFaults
from aftershock.models import LoadedModel, Pass

_EVERY_ROW = range(2**62)


class Injection:
    """A fault set armed on a model, as a context manager.

    Inside, call `begin_pass` before each forward call (the pass runners of `aftershock.models` take it as
    `before_pass`). Weight faults that are present from the start to the end are armed on entry, so they need no
    `begin_pass` and work under any code that runs the model. On exit every word is written back and compared.
    `struck` then tells what was hit.

    `rows[n]` are the rows that fault n strikes in an activation or in the cache, and those that it counts as reached in
    a weight (it acts on all); every row where none are given.

    Raises InputError on construction when the model has no such place. Raises ContractError when a fault that was
    due did not fire, when a fault that waits for a pass was told of none, and when an undo was not exact.
    """

    def __init__(self, model: LoadedModel, faults: Sequence[Fault], rows: Sequence[range] | None = None) -> None:
        for fault in faults:
            if isinstance(fault.site, StoredWordSite):
                raise InputError(f"fault '{fault}' names a stored word: arm what `element_faults` makes of it")
            check(fault, model.components, model.format)
        self._faults = tuple(faults)
        own = [_EVERY_ROW] * len(self._faults) if rows is None else rows
        self._weights = WeightFaults(model, self._faults, own)
        self._outputs = OutputFaults(model, self._faults, own)
        self._cached = CachedFaults(model, self._faults, own)
        self._heads = HeadFaults(model, self._faults, own)
        self._hooks: list[RemovableHandle] = []
        self._announced = False

    @property
    def struck(self) -> tuple[Struck | StruckSet, ...]:
        """What was written so far: in weights, in outputs, in the cache, in heads, each in the order of writing. Every
        word by itself, but for faults that strike many at once."""
        return (*self._weights.struck, *self._outputs.struck, *self._cached.struck, *self._heads.struck)

    @property
    def words(self) -> tuple[Struck, ...]:
        """The words written so far, one by one; of sets the first ones."""
        return tuple(one for some in self.struck for one in (some.first if isinstance(some, StruckSet) else (some,)))

    @property
    def reached_rows(self) -> frozenset[int]:
        """Rows that took part in a pass with some fault present."""
        return frozenset(self._weights.reached | self._outputs.reached | self._cached.reached | self._heads.reached)

    def __enter__(self) -> "Injection":
        try:
            for kind in (self._outputs, self._cached, self._heads):
                self._hooks.extend(kind.register())
            self._weights.arm_lasting()
        except BaseException:
            self._disarm()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disarm()
        if error is None:
            self._require_fired()
            self._require_announced()

    def begin_pass(self, call: Pass) -> None:
        """Take back the weight faults whose passes are over, arm those that begin, note what is due."""
        self._require_fired()
        self._announced = True
        for kind in (self._weights, self._outputs, self._cached, self._heads):
            kind.begin_pass(call)

    def _disarm(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        try:
            self._cached.put_back()
        finally:
            self._weights.take_back()

    def _require_fired(self) -> None:
        missed = [*self._outputs.missed(), *self._cached.missed(), *self._heads.missed()]
        if missed:
            raise ContractError(
                f"'{self._faults[missed[0]]}' was due in a forward call that never made what it strikes"
            )

    def _require_announced(self) -> None:
        waiting = [fault for fault in self._faults if not (fault.in_weights and fault.trigger == ALWAYS)]
        if waiting and not self._announced:
            raise ContractError(f"'{waiting[0]}' waits for a pass, and none was announced with begin_pass")
