"""The one verb: `protect` makes protections real on a model, and its handle tells what they saw and takes them away."""

from collections.abc import Sequence
from types import TracebackType

from aftershock.errors import InputError
from aftershock.models import LoadedModel
from aftershock.protect.attach import Attached, attach
from aftershock.protect.configs import Protection
from aftershock.protect.sites import Coverage
from aftershock.protect.tally import Counts, Event

_MARK = "_aftershock_protected"


def protect(model: LoadedModel, protections: Sequence[Protection]) -> "Protected":
    """Protect a model, in place, until the handle is removed.

    Its words must be clean now: checksums, copies and fingerprints are taken of them as they are. Outputs without a
    fault stay the same to the bit, but for `Int8`, and for range guards whose bounds clean values leave. Protect first,
    then arm faults, record, or `torch.compile`.

    Raises InputError where the model is protected already, where nothing is asked for, for a dtype without a rounding
    threshold, and for modules and parameters that it does not have.
    """
    return Protected(model, protections)


class Protected:
    """A protected model, as a context manager; on exit, or by `remove`, everything is as it was.

    `model` is the model to use: the one given, with another map of components where `Int8` replaced modules. `events`
    are those that were read so far (actions other than `count`).
    """

    def __init__(self, model: LoadedModel, protections: Sequence[Protection]) -> None:
        if not isinstance(model, LoadedModel):
            raise InputError(f"a {type(model).__name__} can't be protected: give what `aftershock.load` gives")
        if not isinstance(protections, Sequence):
            raise InputError(f"protections are given as a list: put {type(protections).__name__} into one")
        if not protections:
            raise InputError("nothing is asked for: give at least one protection")
        if hasattr(model.module, _MARK):
            raise InputError(f"{model.spec} is protected already: give all protections at once, or remove the first")
        self._given, self._protections = model, tuple(protections)
        self.events: list[Event] = []
        self._attached: Attached | None = attach(model, self._protections, self.events)
        setattr(model.module, _MARK, True)

    @property
    def model(self) -> LoadedModel:
        """The model to use."""
        return self._there().model

    @property
    def coverage(self) -> tuple[Coverage, ...]:
        """Every product of the model, with the protections that it has, and why it can't be checked where it can't."""
        attached = self._there()
        known = (*((site, None) for site in attached.sites.all), *attached.sites.unsupported)
        return tuple(
            Coverage(site, tuple(one.protection for one in attached.tallies if site in one.sites), reason)
            for site, reason in known
        )

    @property
    def extra_bytes(self) -> int:
        """Memory that copies, check words and fingerprints of parameters take, and sums of checked weights."""
        attached = self._there()
        return sum(kept.nbytes for kept in (*attached.copies, *attached.scrubs, *attached.products))

    def report(self) -> tuple[Counts, ...]:
        """What each protection saw at each site since the beginning or the last `reset`. Waits for the device."""
        return tuple(tally.read() for tally in self._there().tallies)

    def reset(self) -> None:
        """Count from 0 again, and forget the events."""
        attached = self._there()
        for tally in attached.tallies:
            tally.reset()
        for scrubbed in attached.scrubs:
            scrubbed.forget()
        attached.alarm.clear()
        self.events.clear()

    def renew(self) -> None:
        """Take checksums, copies and fingerprints anew, of words that were changed on purpose, and count from 0.
        Without it a changed weight is taken for a corrupted one. Where it fails the protections are removed."""
        self.remove()
        self.events.clear()
        self._attached = attach(self._given, self._protections, self.events)
        setattr(self._given.module, _MARK, True)

    def remove(self) -> None:
        """Take all protections away, and let go of what they kept. Raises InputError where that was done before."""
        attached, self._attached = self._there(), None
        try:
            attached.undo.close()
        finally:
            delattr(self._given.module, _MARK)

    def __enter__(self) -> "Protected":
        self._there()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._attached is not None:
            self.remove()

    def _there(self) -> Attached:
        if self._attached is None:
            raise InputError("these protections were removed: protect the model again")
        return self._attached
