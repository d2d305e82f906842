"""The library of what can be wrong: for each computation, the errors it may have, each a change of the replica."""

from aftershock.diagnose.hypotheses import (
    attention,
    cache,
    cache_rows,
    head,
    mixture,
    mlp,
    norms,
    precision,
    projections,
    rotation,
    rows,
    tokens,
)
from aftershock.diagnose.hypotheses.changes import Change
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, chance, halves

HYPOTHESES: tuple[Hypothesis, ...] = (
    *tokens.HYPOTHESES,
    *norms.HYPOTHESES,
    *projections.HYPOTHESES,
    *rows.HYPOTHESES,
    *rotation.HYPOTHESES,
    *attention.HYPOTHESES,
    *cache.HYPOTHESES,
    *cache_rows.HYPOTHESES,
    *mlp.HYPOTHESES,
    *mixture.HYPOTHESES,
    *head.HYPOTHESES,
    *precision.HYPOTHESES,
)
"""All of them. Where two explain alike, the earlier one is named."""

__all__ = ["HYPOTHESES", "Candidate", "Change", "Hypothesis", "Place", "chance", "halves"]
