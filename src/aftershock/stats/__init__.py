"""Rates with honest intervals: arrays in, numbers out. The fault is the unit of inference."""

from aftershock.stats.allocation import items_per_fault, neyman_allocation, stratum_variances
from aftershock.stats.bootstrap import bootstrap_interval
from aftershock.stats.clustered import (
    Clustering,
    any_rate,
    by_label,
    cluster_interval,
    clustering,
    fault_shares,
)
from aftershock.stats.comparison import (
    mcnemar,
    paired_difference,
    paired_excess,
    rate_difference,
    unpaired_difference,
)
from aftershock.stats.degradation import Cells, Degradation, HeldOut, Prediction, Term, fit_degradation, held_out
from aftershock.stats.estimates import Comparison, Estimate
from aftershock.stats.fragility import (
    awrcl,
    awrcl_interval,
    drop_threshold,
    relative_change,
    threshold_interval,
)
from aftershock.stats.intervals import exact, rule_of_three, upper_bound, wilson
from aftershock.stats.nonfinite import NonFinite, nonfinite_chance, parameters_from_nan, published_nan_chance
from aftershock.stats.sequences import anytime_interval
from aftershock.stats.sizing import sample_size, sample_size_relative
from aftershock.stats.testing import holm, p_above, p_below, p_equivalent, pooled
from aftershock.stats.trend import rank_trend
from aftershock.stats.weighted import (
    Design,
    design_of,
    effective_sample_size,
    importance_interval,
    one_stratum,
    weighted_by_label,
    weighted_interval,
)

__all__ = [
    "Cells",
    "Clustering",
    "Comparison",
    "Degradation",
    "Design",
    "Estimate",
    "HeldOut",
    "NonFinite",
    "Prediction",
    "Term",
    "any_rate",
    "anytime_interval",
    "awrcl",
    "awrcl_interval",
    "bootstrap_interval",
    "by_label",
    "cluster_interval",
    "clustering",
    "design_of",
    "drop_threshold",
    "effective_sample_size",
    "exact",
    "fault_shares",
    "fit_degradation",
    "held_out",
    "holm",
    "importance_interval",
    "items_per_fault",
    "mcnemar",
    "neyman_allocation",
    "nonfinite_chance",
    "one_stratum",
    "p_above",
    "p_below",
    "p_equivalent",
    "paired_difference",
    "paired_excess",
    "parameters_from_nan",
    "pooled",
    "published_nan_chance",
    "rank_trend",
    "rate_difference",
    "relative_change",
    "rule_of_three",
    "sample_size",
    "sample_size_relative",
    "stratum_variances",
    "threshold_interval",
    "unpaired_difference",
    "upper_bound",
    "weighted_by_label",
    "weighted_interval",
    "wilson",
]
