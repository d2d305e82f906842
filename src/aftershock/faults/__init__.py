"""Describe, print, parse, check and draw faults: Fault = Site x Corruption x Trigger."""

from aftershock.faults.catalogue import CATALOGUE, FaultModel
from aftershock.faults.corruption import Add, Corruption, Drawn, Flip, Replace, StuckAt, bits_of
from aftershock.faults.draws import distinct
from aftershock.faults.experts import by_expert
from aftershock.faults.fault import Fault
from aftershock.faults.grammar import (
    GRAMMAR,
    format_faults,
    parse_fault,
    parse_faults,
    parse_trigger,
    read_faults,
)
from aftershock.faults.moments import ALWAYS, Entry, Trigger, pass_name
from aftershock.faults.parts import StratumKey
from aftershock.faults.places import cache_site, head_site, key_of, output_site, parameter_site, site_of, stored_site
from aftershock.faults.resolve import Labels, check, column_of, labels, site_kind, splits
from aftershock.faults.sample import sample_faults
from aftershock.faults.scatter import Places, TokenScatter, check_per_pass, every, joined, scattered_weights
from aftershock.faults.selection import MAKES_SCORES, Population, Selection, parse_layers, select
from aftershock.faults.sites import (
    ActivationSite,
    CachedSite,
    HeadValueSite,
    Scatter,
    ScatteredOutput,
    ScatteredWeights,
    Site,
    StoredWordSite,
    WeightSite,
)
from aftershock.faults.stored import Element, StoredChange, armed, element_faults, stored_changes
from aftershock.faults.strata import Cell, Stratum, cell_faults, stratify
from aftershock.faults.sweep import combinations, sweep_name, sweep_value, swept

__all__ = [
    "ALWAYS",
    "CATALOGUE",
    "GRAMMAR",
    "MAKES_SCORES",
    "ActivationSite",
    "Add",
    "CachedSite",
    "Cell",
    "Corruption",
    "Drawn",
    "Element",
    "Entry",
    "Fault",
    "FaultModel",
    "Flip",
    "HeadValueSite",
    "Labels",
    "Places",
    "Population",
    "Replace",
    "Scatter",
    "ScatteredOutput",
    "ScatteredWeights",
    "Selection",
    "Site",
    "StoredChange",
    "StoredWordSite",
    "Stratum",
    "StratumKey",
    "StuckAt",
    "TokenScatter",
    "Trigger",
    "WeightSite",
    "armed",
    "bits_of",
    "by_expert",
    "cache_site",
    "cell_faults",
    "check",
    "check_per_pass",
    "column_of",
    "combinations",
    "distinct",
    "element_faults",
    "every",
    "format_faults",
    "head_site",
    "joined",
    "key_of",
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
    "scattered_weights",
    "select",
    "site_kind",
    "site_of",
    "splits",
    "stored_changes",
    "stored_site",
    "stratify",
    "sweep_name",
    "sweep_value",
    "swept",
]
