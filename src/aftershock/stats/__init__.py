"""Rates with honest intervals: arrays in, numbers out. The fault is the unit of inference."""

from aftershock.stats.bootstrap import bootstrap_interval
from aftershock.stats.clustered import (
    Clustering,
    any_rate,
    by_label,
    cluster_interval,
    clustering,
    fault_shares,
)
from aftershock.stats.comparison import paired_difference, paired_excess, unpaired_difference
from aftershock.stats.estimates import Comparison, Estimate
from aftershock.stats.fragility import (
    awrcl,
    awrcl_interval,
    drop_threshold,
    relative_change,
    threshold_interval,
)
from aftershock.stats.intervals import rule_of_three, wilson
from aftershock.stats.sizing import sample_size, sample_size_relative

__all__ = [
    "Clustering",
    "Comparison",
    "Estimate",
    "any_rate",
    "awrcl",
    "awrcl_interval",
    "bootstrap_interval",
    "by_label",
    "cluster_interval",
    "clustering",
    "drop_threshold",
    "fault_shares",
    "paired_difference",
    "paired_excess",
    "relative_change",
    "rule_of_three",
    "sample_size",
    "sample_size_relative",
    "threshold_interval",
    "unpaired_difference",
    "wilson",
]
