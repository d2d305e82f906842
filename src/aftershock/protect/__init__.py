"""Protections as configs that one verb applies, and the planner that chooses among them."""

from aftershock.protect.configs import (
    PRODUCTS,
    Action,
    Backup,
    Checksum,
    DualFirstToken,
    Duplication,
    FiniteScreen,
    FirstTokenBounds,
    Int8,
    Limit,
    Protection,
    RangeGuard,
    Scrub,
)
from aftershock.protect.handle import Protected, protect
from aftershock.protect.observed import observe_bounds
from aftershock.protect.sites import Coverage
from aftershock.protect.tally import CorruptionError, Counts, Event, Site

__all__ = [
    "PRODUCTS",
    "Action",
    "Backup",
    "Checksum",
    "CorruptionError",
    "Counts",
    "Coverage",
    "DualFirstToken",
    "Duplication",
    "Event",
    "FiniteScreen",
    "FirstTokenBounds",
    "Int8",
    "Limit",
    "Protected",
    "Protection",
    "RangeGuard",
    "Scrub",
    "Site",
    "observe_bounds",
    "protect",
]
