"""Protections as configs that one verb applies, and the planner that chooses among them."""

from aftershock.protect.configs import (
    PRODUCTS,
    Action,
    Backup,
    Checksum,
    DualFirstToken,
    Duplication,
    Ecc,
    FiniteScreen,
    FirstTokenBounds,
    FusedChecksum,
    Int8,
    Limit,
    Protection,
    RangeGuard,
    Scrub,
)
from aftershock.protect.handle import Protected, protect
from aftershock.protect.observed import observe_bounds
from aftershock.protect.planner.choice import Choice, Offers, best_choice, pareto, parse_share
from aftershock.protect.planner.costs import Cost, measured_cost, measured_costs
from aftershock.protect.planner.fragile import Fragility, fragile_backup, fragile_ecc, fragile_parameters, most_fragile
from aftershock.protect.planner.measured import Detection, Seen, detected_by, golden_alarms, protected_records
from aftershock.protect.planner.planner import FRESH_TRIALS, Planned, plan_protections
from aftershock.protect.planner.record import BeforeAfter, CurvePoint, Fresh, Offered, ProtectionPlan, Spent
from aftershock.protect.planner.saved import load_protections, protections_text, save_protections
from aftershock.protect.regions.file import CriticalRegions, load_regions, save_regions, text_digest
from aftershock.protect.regions.fitting import FittedRegion, GridPoint, equal_errors, fit_component
from aftershock.protect.regions.struck_sums import accumulators, changed_sums
from aftershock.protect.sites import Coverage
from aftershock.protect.tally import CorruptionError, Counts, Event, Site
from aftershock.protect.tiles import Recovered, Scope, as_matrices, by_depth, recover, tile_deviations

__all__ = [
    "FRESH_TRIALS",
    "PRODUCTS",
    "Action",
    "Backup",
    "BeforeAfter",
    "Checksum",
    "Choice",
    "CorruptionError",
    "Cost",
    "Counts",
    "Coverage",
    "CriticalRegions",
    "CurvePoint",
    "Detection",
    "DualFirstToken",
    "Duplication",
    "Ecc",
    "Event",
    "FiniteScreen",
    "FirstTokenBounds",
    "FittedRegion",
    "Fragility",
    "Fresh",
    "FusedChecksum",
    "GridPoint",
    "Int8",
    "Limit",
    "Offered",
    "Offers",
    "Planned",
    "Protected",
    "Protection",
    "ProtectionPlan",
    "RangeGuard",
    "Recovered",
    "Scope",
    "Scrub",
    "Seen",
    "Site",
    "Spent",
    "accumulators",
    "as_matrices",
    "best_choice",
    "by_depth",
    "changed_sums",
    "detected_by",
    "equal_errors",
    "fit_component",
    "fragile_backup",
    "fragile_ecc",
    "fragile_parameters",
    "golden_alarms",
    "load_protections",
    "load_regions",
    "measured_cost",
    "measured_costs",
    "most_fragile",
    "observe_bounds",
    "pareto",
    "parse_share",
    "plan_protections",
    "protect",
    "protected_records",
    "protections_text",
    "recover",
    "save_protections",
    "save_regions",
    "text_digest",
    "tile_deviations",
]
