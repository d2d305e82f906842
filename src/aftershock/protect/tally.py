"""What protections saw and did: counts that stay on the device until they are asked for, and events."""

from dataclasses import dataclass
from typing import Protocol

import torch


class CorruptionError(RuntimeError):
    """A protection whose action is `raise` found values that are wrong."""


@dataclass(frozen=True)
class Site:
    """Where a protection stands: a module, the components that share it (joined by `+`), its layer (None outside)."""

    module: str
    component: str
    layer: int | None

    @property
    def components(self) -> tuple[str, ...]:
        """The components one by one."""
        return tuple(self.component.split("+"))


@dataclass(frozen=True)
class Event:
    """Something that a protection found and read: at which site, how many rows or values were wrong, what was done,
    and whether they are right after it (None where that is not known)."""

    site: Site
    protection: str
    wrong: int
    action: str
    mended: bool | None


@dataclass(frozen=True)
class Counts:
    """What one protection saw at one site: calls; rows (or values) checked and wrong; those computed again."""

    site: Site
    protection: str
    calls: int
    checked: int
    wrong: int
    recomputed: int


class Counter(Protocol):
    """What one `protection` sees at a `site`, which stands for the products at `sites`."""

    site: Site
    sites: tuple[Site, ...]
    protection: str

    def reset(self) -> None:
        """Begin anew."""

    def read(self) -> Counts:
        """What was counted."""
        ...


class Tally:
    """Counts of one protection at one site, int64, shape (4,): calls, checked, wrong, recomputed; added to without
    being read."""

    def __init__(self, site: Site, protection: str, device: torch.device) -> None:
        self.site, self.protection = site, protection
        self.sites: tuple[Site, ...] = (site,)
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._call = torch.tensor([1, 0, 0, 0], device=device)

    def see(self, wrong: torch.Tensor) -> None:
        """A call whose rows (or values) are `wrong` (bool) or not."""
        self._counts += self._call
        self._counts[1] += wrong.numel()
        self._counts[2] += wrong.sum()

    def recomputed(self, count: int) -> None:
        """So many were computed again."""
        self._counts[3] += count

    def reset(self) -> None:
        """Begin anew."""
        self._counts.zero_()

    def read(self) -> Counts:
        """What was counted."""
        return Counts(self.site, self.protection, *self._counts.tolist())
