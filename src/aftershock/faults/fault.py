"""A fault: which value (site), what happens to it (corruption), and when (trigger).

Every part is an immutable value. `str(fault)` is one line and `parse_fault` gives an equal fault back.
"""

from dataclasses import dataclass

from aftershock.faults.corruption import Corruption
from aftershock.faults.moments import ALWAYS, Entry, Trigger
from aftershock.faults.sites import (
    ActivationSite,
    CachedSite,
    HeadValueSite,
    ScatteredOutput,
    ScatteredWeights,
    Site,
    WeightSite,
)
from aftershock.models import PREFILL


@dataclass(frozen=True)
class Fault:
    """One fault of a trial; a trial has one or several (a tuple of faults)."""

    site: Site
    corruption: Corruption
    trigger: Trigger = ALWAYS

    @property
    def first(self) -> int:
        """The first pass in which the fault is present: a word of the cache can't be wrong before it is written."""
        return max(self.trigger.first, self.site.entry.number if isinstance(self.site, CachedSite) else PREFILL)

    @property
    def in_weights(self) -> bool:
        """Whether it lies in stored parameters, scattered or not, which all tokens of a pass share."""
        return isinstance(self.site, WeightSite | ScatteredWeights)

    @property
    def spreads(self) -> bool:
        """Whether it strikes a module's output at every token of its passes, not at one."""
        one_token = self.trigger.token is not None or (self.trigger.transient and self.trigger.first != PREFILL)
        return isinstance(self.site, ScatteredOutput) or (isinstance(self.site, ActivationSite) and not one_token)

    @property
    def entry(self) -> Entry:
        """The token whose word of the cache is struck, or for which what is struck is made; weights belong to
        none, and neither does what strikes every token."""
        if isinstance(self.site, CachedSite):
            return self.site.entry
        assert isinstance(self.site, ActivationSite | HeadValueSite)
        return Entry(self.trigger.first, self.trigger.token)

    def __str__(self) -> str:
        return f"{self.site} {self.corruption} {self.trigger}"
