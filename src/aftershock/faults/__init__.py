"""Describe, print, parse, check and draw faults: Fault = Site x Corruption x Trigger."""

from aftershock.faults.fault import (
    ALWAYS,
    ActivationSite,
    Add,
    Corruption,
    Fault,
    Flip,
    Replace,
    Site,
    StuckAt,
    Trigger,
    WeightSite,
    pass_name,
)
from aftershock.faults.grammar import (
    GRAMMAR,
    format_faults,
    parse_fault,
    parse_faults,
    parse_trigger,
    read_faults,
)
from aftershock.faults.resolve import Labels, check, column, labels, output_site, parameter_site, splits
from aftershock.faults.sample import distinct, sample_faults
from aftershock.faults.selection import Population, Selection, parse_layers, select
from aftershock.faults.strata import Cell, Stratum, StratumKey, cell_faults, stratify

__all__ = [
    "ALWAYS",
    "GRAMMAR",
    "ActivationSite",
    "Add",
    "Cell",
    "Corruption",
    "Fault",
    "Flip",
    "Labels",
    "Population",
    "Replace",
    "Selection",
    "Site",
    "Stratum",
    "StratumKey",
    "StuckAt",
    "Trigger",
    "WeightSite",
    "cell_faults",
    "check",
    "column",
    "distinct",
    "format_faults",
    "labels",
    "output_site",
    "parameter_site",
    "parse_fault",
    "parse_faults",
    "parse_layers",
    "parse_trigger",
    "pass_name",
    "read_faults",
    "sample_faults",
    "select",
    "splits",
    "stratify",
]
